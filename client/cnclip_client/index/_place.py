"""A folder that appears whole, or takes another's place whole."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Container
from pathlib import Path

from cnclip_client._exceptions import JobRefused
from cnclip_client._replacing import sync

__all__ = ["put_folder", "require_replaceable", "restore"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_OLD = "old"


def require_replaceable(place: Path, marker: str, names: Container[str]) -> None:
    """Sees that a folder may be put at a place: nothing is there, or a folder with the marker and no file of another's.

    Raises:
        JobRefused: Something else is there.
        OSError: It cannot be read.
    """
    if not place.exists() and not place.is_symlink():
        return
    if not place.is_dir():
        raise JobRefused("is there and no index; give another --output", output=str(place))
    held = [path.name for path in place.iterdir()]
    if held and marker not in held:
        raise JobRefused("is there and no index; give another --output", output=str(place))
    if others := sorted(name for name in held if name not in names):
        raise JobRefused(
            f"holds {others[0]}, which is none of an index's files; move it elsewhere, since the folder is replaced",
            output=str(place),
        )


def put_folder(made: Path, place: Path) -> None:
    """Puts a folder at a place, on the disk when this returns; whoever opens the place sees the old one or the new one.

    Args:
        made: The folder, whole. What was at the place before is removed.
        place: Where it belongs, on the same disk.

    Raises:
        OSError: It cannot be put there.
    """
    for path in (*made.iterdir(), made):
        sync(path)
    if place.exists():
        _exchange(made, place)
        sync(place.parent)
        shutil.rmtree(made)
    else:
        made.rename(place)
        sync(place.parent)


def restore(work: Path, place: Path) -> None:
    """Puts back what a process that was killed had moved out of its place, where the system has no exchange."""
    if (work / _OLD).is_dir():
        if place.exists():
            shutil.rmtree(work / _OLD)
        else:
            (work / _OLD).rename(place)


def _exchange(made: Path, place: Path) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(made), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):  # some network file systems cannot exchange
            raise OSError(code, os.strerror(code), str(place))
    old = made.with_name(_OLD)
    place.rename(old)
    made.rename(place)
    old.rename(made)
