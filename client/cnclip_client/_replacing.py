"""The one place where a file of this package's takes another's place: whole, or not at all.

A link stays one: what it points to is replaced. What is no regular file (a device, a pipe, `/dev/stdout`) has no place
to take and is written straight.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["behind_links", "kind_of_special", "put", "replacing", "sync", "sync_open", "takes"]

# What shared folders of virtual machines and some of FUSE's disks answer, which have nothing to wait for.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

_KINDS = {
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


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
    target = behind_links(place)
    if target is None or (kind_of_special(target) and not target.is_dir()):
        with _straight(place) as file:
            yield file
        return
    if target.is_dir():
        # Now, and not when the work is done.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(place))
    partial = target.with_name(f"{target.name}.partial" if alone else f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        file = partial.open("wb" if alone else "xb")
    except OSError as error:
        # By the name that the user gave.
        raise OSError(error.errno, error.strerror, os.fspath(place)) from error
    try:
        with file:
            yield file
        if durable:
            put(partial, target)
        else:
            partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def put(made: Path, place: Path) -> None:
    """Moves a whole file to its place; it is on the disk there when this returns.

    Raises:
        OSError: It cannot be moved, or what is there is no file.
    """
    target = behind_links(place)
    special = "an open file of this process" if target is None else kind_of_special(target)
    if target is None or special:
        raise OSError(errno.EINVAL, f"is {special}, whose place no file takes", os.fspath(place))
    sync(made)
    try:
        made.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The link goes to another disk.
        with made.open("rb") as source, replacing(target, durable=True) as copy:
            shutil.copyfileobj(source, copy)
        made.unlink()
    sync(target.parent)


def behind_links(place: Path) -> Path | None:
    """Returns the file that a name stands for, there or not; None for what is open already, such as `/dev/stdout`.

    Raises:
        OSError: Links go in a circle.
    """
    if not place.is_symlink():
        return None if _is_of_proc(place) else place
    seen = 0
    while place.is_symlink():
        if _is_of_proc(place):
            return None
        seen += 1
        if seen > 40:  # as many as Linux follows
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(place))
        place = place.parent / place.readlink()
    return place


def kind_of_special(place: Path) -> str:
    """Returns what it is that is there, in words, if it is neither a file nor nothing."""
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return ""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def takes(place: Path, read: Path) -> bool:
    """Tells whether a file that is put in a place takes what is read there: the same file, or one in that folder.

    Raises:
        OSError: Links go in a circle.
    """
    target = behind_links(place)
    if target is None or kind_of_special(target):
        return False  # nothing takes its place
    taken, wanted = target.resolve(), read.resolve()
    return taken == wanted or (read.is_dir() and taken.is_relative_to(wanted))


def _is_of_proc(place: Path) -> bool:
    # Links there only look like links: what they lead to may have no name, or have it no more.
    return place.parent.resolve().is_relative_to("/proc")


def _straight(place: Path) -> IO[bytes]:
    """Opens what is no regular file for writing; of what this process has open already, the very same."""
    end = place
    while end.is_symlink() and not _is_of_proc(end):
        end = end.parent / end.readlink()
    folder = end.parent.resolve()
    if folder == Path("/proc/self").resolve() / "fd" and end.name.isdecimal():
        return os.fdopen(os.dup(int(end.name)), "wb")
    return place.open("wb")


def sync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        sync_open(handle, path)
    finally:
        os.close(handle)


def sync_open(handle: int, path: Path) -> None:
    """Does so with what is open already.

    Raises:
        OSError: It does not get there: a full disk or quota, which network disks tell no sooner.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
