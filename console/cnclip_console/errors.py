"""What the operating system says is wrong, in one line, as all five commands say it."""

from __future__ import annotations

import errno
import os

from cnclip_console.shown import visible

__all__ = ["told"]

_OTHER_DISK = "this disk can't do that: name a place on another, or an object store by its own address (s3://...)"
_FIXES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "see to its permissions, or name another",
    errno.EPERM: "see to its permissions, or name another",
    errno.EROFS: "name another place, which can be written",
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EMFILE: "let more files be open (ulimit -n), and run it again",
    errno.ENFILE: "let more files be open on this machine, and run it again",
    errno.ENOTSUP: _OTHER_DISK,
    errno.ENOSYS: _OTHER_DISK,
    errno.ENOTCONN: "see that its disk is mounted, and run it again",
    errno.ESTALE: "see that its disk is mounted, and run it again",
}


def told(error: BaseException) -> str:
    """Returns what an error says; of an `OSError` its file, what is wrong with that, and what mends it.

    Python's own words for it, `[Errno 2] No such file or directory: 'a.jsonl'`, begin with what helps least. An error
    that was raised with a message keeps it, and no advice is added.
    """
    if not isinstance(error, OSError) or not error.strerror:
        return visible(str(error))
    name = error.filename
    where = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes | os.PathLike) and name else ""
    own_words = error.errno is None or error.strerror != os.strerror(error.errno)
    fix = None if own_words or error.errno is None else _FIXES.get(error.errno)
    return visible(f"{where}{error.strerror}" + (f"; {fix}" if fix else ""))
