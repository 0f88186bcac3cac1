"""Images that are files: of a folder, of a glob, of a list."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnclip_client.sources._item import Item
from cnclip_client.sources._lines import about_lines, bounded_lines

__all__ = ["FolderSource", "GlobSource", "ListSource"]

_LONGEST_PATH = 64 * 1024


@dataclass(frozen=True, slots=True)
class FolderSource:
    """All files in a folder and the folders in it, by name; hidden ones, such as `.DS_Store`, are left out.

    Every other file is an item, whatever its name ends in: one that is no image fails with a reason, rather than
    being passed over. Links are followed, except in circles. One folder's names are in memory at a time, and those
    of the folders above it.

    Attributes:
        path: The folder. Ids are paths relative to it, with forward slashes.
    """

    path: Path
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "folder", "path": str(self.path.absolute())}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        os.scandir(self.path).close()  # that it cannot be read at all is no item's fault
        yield from _walk(os.fspath(self.path), "", ())

    def total(self) -> int | None:
        return sum(1 for _ in self.items())


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Item]:
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in above:
            return
        with os.scandir(folder) as scanned:
            entries = sorted((one for one in scanned if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        yield Item(prefix, None, f"cannot be listed: {error.strerror}")
        return
    above = (*above, (status.st_dev, status.st_ino))
    for entry in entries:
        name = prefix + named(entry.name)
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:  # a link to itself
            yield Item(name, None, str(error.strerror))
            continue
        if is_folder:
            yield from _walk(entry.path, f"{name}/", above)
        else:
            # To open a pipe would wait for its writer.
            yield Item(name, entry.path) if is_file else Item(name, None, "is no file, or a broken link")


def named(path: str) -> str:
    """Returns a path as an id: the same in any locale, as a name's bytes are UTF-8, or escaped where they are not."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _kind_of(path: str) -> str:
    """Returns nothing for a file, and in words what else it is, or why that cannot be told."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return "nothing"
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a NUL in it
        return f"is no path: {error}"
    return "" if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "is no file"


@dataclass(frozen=True, slots=True)
class GlobSource:
    """The files that a pattern matches, `**` standing for any folders.

    Attributes:
        pattern: As Python's `glob` takes it. Ids are the paths as it gives them, sorted.
    """

    pattern: str
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "glob", "path": str(Path(self.pattern).absolute())}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        # Sorting needs all the names at once: 100 bytes or so for each match.
        for path in sorted(glob.iglob(self.pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute one
            kind = _kind_of(path)
            if kind != "a folder":
                failure = "is no file, or a broken link" if kind == "nothing" else kind
                yield Item(named(path), None if failure else path, failure)

    def total(self) -> int | None:
        return sum(1 for _ in self.items())


@dataclass(frozen=True, slots=True)
class ListSource:
    """A text file with the path of an image in each line, relative to the current folder; blank lines are left out.

    Attributes:
        path: The list. Ids are its lines.
    """

    path: Path
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "list", "path": str(self.path.absolute()), "size_bytes": self.path.stat().st_size}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        for number, line, whole in bounded_lines(self.path, _LONGEST_PATH):
            path = os.fsdecode(line)
            if not whole:
                yield Item(f"line {number}", None, f"is longer than {_LONGEST_PATH:,} bytes")
            elif path:
                # What is not there says so itself when it is read.
                kind = _kind_of(path)
                failure = "is no file" if kind == "a folder" else "" if kind == "nothing" else kind
                yield Item(named(path), None if failure else path, failure)

    def total(self) -> int | None:
        return about_lines(self.path)
