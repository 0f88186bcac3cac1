"""Tells a file's own troubles from those that every other file would have now as well."""

from __future__ import annotations

import errno
import os

__all__ = ["identity_of", "is_of_all", "is_still"]

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# A network disk, or what FUSE mounts, that is away.
_OF_THE_DISK = (errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN)


def is_of_all(error: OSError) -> bool:
    """Whether an error that one file gave is the machine's or the disk's, so that every other file would give it now.

    A job that noted it as an item's failure would note the same of all items that are left.
    """
    return error.errno in _OF_THE_MACHINE or error.errno in _OF_THE_DISK


def identity_of(folder: str) -> tuple[int, int]:
    """Returns a folder's device and inode. Raises OSError."""
    status = os.stat(folder)  # noqa: PTH116 - of paths that need be no text
    return status.st_dev, status.st_ino


def is_still(folder: str, identity: tuple[int, int]) -> bool:
    """Whether a folder is what it was: its disk may not be mounted any more, which is no fault of what was in it."""
    try:
        return identity_of(folder) == identity
    except OSError:
        return False
