"""Imports what only some uses need, and says what to install where it is missing."""

from __future__ import annotations

import importlib
from typing import Any

from cnclip_client._exceptions import MissingExtra

__all__ = ["require"]


def require(module: str, *, extra: str) -> Any:
    """Returns a module of an optional dependency.

    Args:
        module: Its full name, such as `pyarrow.parquet`.
        extra: The extra of this distribution that brings it.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there but lacks one of its own is broken, not missing.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtra(module=error.name, extra=extra) from error
