"""What the five commands share: help and tables that fit a terminal of 80 columns, errors, options that many have.

Each name is imported when it is first asked for: `start` comes before all that takes time, and typer takes some.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnclip_console.errors import told
    from cnclip_console.help import plain_app
    from cnclip_console.options import Version, gives_options, option
    from cnclip_console.shown import counted, visible
    from cnclip_console.table import print_table

__all__ = ["Version", "counted", "gives_options", "option", "plain_app", "print_table", "told", "visible"]

_MODULES = {
    "Version": "options",
    "counted": "shown",
    "gives_options": "options",
    "option": "options",
    "plain_app": "help",
    "print_table": "table",
    "told": "errors",
    "visible": "shown",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
