"""What the operating system says is wrong: the file first, then what mends it, and no number."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cnclip_console import told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOENT, os.strerror(errno.ENOENT), "a b.jsonl"),
            "a b.jsonl: No such file or directory; check the path",
        ),
        (
            OSError(errno.ENOENT, os.strerror(errno.ENOENT), b"\xe7\x8c\xab"),
            "猫: No such file or directory; check the path",
        ),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), Path("a")), "a: No such file or directory; check the path"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "No space left on device; make room, or name another place",
        ),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a"),
            "a: Too many open files; let more files be open (ulimit -n), and run it again",
        ),
        (
            OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), "a"),  # as mounted object stores answer a rename
            "a: Operation not supported; this disk can't do that: name a place on another, or an object store by its "
            "own address (s3://...)",
        ),
        (OSError(errno.EINVAL, os.strerror(errno.EINVAL), "a"), "a: Invalid argument"),
        # Words of our own, which end in an advice themselves.
        (
            OSError(errno.ENOENT, "No such file or directory; give another --output", "a"),
            "a: No such file or directory; give another --output",
        ),
        (OSError("the disk has gone"), "the disk has gone"),
        (ValueError("a: no number"), "a: no number"),
    ],
)
def test_errors_of_the_operating_system(error: BaseException, words: str) -> None:
    assert told(error) == words
