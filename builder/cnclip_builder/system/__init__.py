"""This machine: what it has, processes of their own for stages, files and folders replaced in one step."""
