"""The commands, by their names."""

from __future__ import annotations

from importlib import import_module

from tests.commands import MAINS

APPS = {name: import_module(module).app for name, module in MAINS.items()}
