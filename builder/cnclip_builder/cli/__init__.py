"""`cnclip-build`: a module for each group of commands, and the options that they share."""
