"""The one place where a file of this package's takes another's place: whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["put", "replacing"]


@contextmanager
def replacing(place: Path, *, alone: bool = False, durable: bool = False) -> Iterator[IO[bytes]]:
    """Opens a file beside the one that is meant, which takes its place once it is whole, and is removed on an error.

    Args:
        place: Where it belongs.
        alone: Whether nobody else can be writing it, as in a locked folder: what a killed process left is then written
            over. Otherwise each writer has a file of its own.
        durable: Whether it is to be on the disk at the end.

    Raises:
        OSError: It cannot be written.
    """
    partial = place.with_name(f"{place.name}.partial" if alone else f"{place.name}.{secrets.token_hex(4)}.partial")
    try:
        file = partial.open("wb" if alone else "xb")
    except OSError as error:
        # By the name that the user gave.
        raise OSError(error.errno, error.strerror, os.fspath(place)) from error
    try:
        with file:
            yield file
        if durable:
            put(partial, place)
        else:
            partial.replace(place)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def put(made: Path, place: Path) -> None:
    """Moves a whole file of the same file system to its place; it is on the disk there when this returns.

    Raises:
        OSError: It cannot be moved.
    """
    _sync(made)
    made.replace(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
