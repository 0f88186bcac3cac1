"""The temporary folder of a server."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cnclip_server._errors import TemporaryFolderError

# Triton's Python backend starts its stubs through `bash -c` with unquoted paths: these characters survive
# that.
SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def make_folder() -> Path:
    """Makes a temporary folder for one server, where Triton's Python backend can start its stubs from.

    Raises:
        TemporaryFolderError: There is no room for it, or no place.
    """
    try:
        base = tempfile.gettempdir()
        safe_base = base if SHELL_SAFE.fullmatch(base) else "/tmp"  # noqa: S108
        return Path(tempfile.mkdtemp(prefix="cnclip-server-", dir=safe_base))
    except OSError as error:
        named = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108
        raise TemporaryFolderError(named, error.strerror or str(error)) from error


def check_executable(folder: Path) -> None:
    """Refuses a folder that libraries cannot be loaded from.

    Raises:
        TemporaryFolderError: It lies on a file system that is mounted `noexec`.
    """
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise TemporaryFolderError(folder.parent, "it is mounted noexec, and Triton's backends are loaded from it")


@contextlib.contextmanager
def told_by_name(folder: Path) -> Iterator[None]:
    """Gives errors of the file system within the context the folder's name.

    Raises:
        TemporaryFolderError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise TemporaryFolderError(folder.parent, error.strerror or str(error)) from error
