"""Finds files below a folder or by a pattern: links are followed, never in circles, and nothing is left out silently.

The standard library's `glob` and `Path.rglob` pass over a folder that they may not list, and `glob` follows links in
circles: two of them make its `**` endless.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

__all__ = ["LeftOut", "Unlisted", "files_below", "files_matching", "is_folder", "is_hidden"]

Unlisted: TypeAlias = Callable[[str, OSError], None]
"""Takes note of a folder that cannot be listed, and why; or raises that."""

LeftOut: TypeAlias = Callable[[str], bool]
"""Whether a file or a folder of that name is passed over, with all that is in it."""

# No error: a pattern such as `*/images/*.jpg` need not match in each folder.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_hidden(name: str) -> bool:
    """Whether it begins with a dot."""
    return name.startswith(".")


def files_below(folder: Path, *endings: str, left_out: LeftOut = is_hidden) -> list[Path]:
    """Returns the files in a folder and in those in it, by path, without what is left out.

    Folders behind links count as well, each of them once, and where it is no link if it is there too.

    Args:
        folder: The folder.
        endings: What names end in, in lower case; those of files may be in any.
        left_out: What is passed over; hidden ones unless given.

    Raises:
        OSError: One of the folders cannot be listed.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders: list[Path] = [folder]
    linked: list[Path] = []
    while folders or linked:
        one = folders.pop() if folders else linked.pop()
        status = one.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(one) as entries:
            for entry in entries:
                if left_out(entry.name):
                    continue
                if is_folder(entry):
                    (linked if entry.is_symlink() else folders).append(one / entry.name)
                elif entry.name.lower().endswith(endings):
                    found.append(one / entry.name)
    return sorted(found)


def files_matching(pattern: str, unlisted: Unlisted) -> list[str]:
    """Returns the paths that a pattern matches and that are no folders, sorted, each once.

    Args:
        pattern: As `glob.glob(recursive=True)` takes it, and paths come as it gives them.
        unlisted: Told of each folder that cannot be listed.
    """
    names = pattern.split("/")
    literal = list(takewhile(lambda name: not glob.has_magic(name), names))
    parts = [name for name in names[len(literal) :] if name]
    if not parts or not names[-1]:
        return []
    prefix = "/".join(literal)
    prefix = f"{prefix.rstrip('/')}/" if literal else ""
    return sorted(set(_expanded(prefix, parts, unlisted)))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _expanded(prefix: str, parts: list[str], unlisted: Unlisted) -> Iterator[str]:
    """Yields what the rest of a pattern matches behind a path that ends in a slash, or is empty."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders(prefix, unlisted):
            yield from _expanded(folder, rest or ["*"], unlisted)
    elif glob.has_magic(part):
        matches = re.compile(fnmatch.translate(part)).match
        for entry in _listed(prefix, unlisted):
            if (entry.name.startswith(".") and not part.startswith(".")) or not matches(entry.name):
                continue
            if not rest:
                if not is_folder(entry):
                    yield prefix + entry.name
            elif is_folder(entry):
                yield from _expanded(f"{prefix}{entry.name}/", rest, unlisted)
    elif rest:
        yield from _expanded(f"{prefix}{part}/", rest, unlisted)
    elif os.path.lexists(prefix + part) and not os.path.isdir(prefix + part):  # noqa: PTH112 - keeps what was typed
        yield prefix + part


def _folders(prefix: str, unlisted: Unlisted) -> Iterator[str]:
    """Yields a path that ends in a slash, or is empty, and those of all folders below it, hidden ones left out."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(prefix, ())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = Path(folder or ".").stat()
        except OSError as error:
            _tell(folder, error, unlisted)
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        yield folder
        waiting += (
            (f"{folder}{entry.name}/", (*above, here))
            for entry in _listed(folder, unlisted)
            if not entry.name.startswith(".") and is_folder(entry)
        )


def _listed(prefix: str, unlisted: Unlisted) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(prefix or ".") as entries:
            yield from entries
    except OSError as error:
        _tell(prefix, error, unlisted)


def _tell(folder: str, error: OSError, unlisted: Unlisted) -> None:
    if error.errno not in _NOT_THERE:
        unlisted(folder or ".", error)
