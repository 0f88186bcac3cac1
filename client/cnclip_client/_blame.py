"""Tells a file's own troubles from those that every other file would have now as well."""

from __future__ import annotations

import errno

__all__ = ["is_of_all"]

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# A network disk, or what FUSE mounts, that is away.
_OF_THE_DISK = (errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN)


def is_of_all(error: OSError) -> bool:
    """Whether an error that one file gave is the machine's or the disk's, so that every other file would give it now.

    A job that noted it as an item's failure would note the same of all items that are left.
    """
    return error.errno in _OF_THE_MACHINE or error.errno in _OF_THE_DISK
