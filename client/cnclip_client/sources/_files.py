"""Images that are files: of a folder, of a glob, of a list."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from cnclip_client._blame import identity_of, is_of_all, is_still
from cnclip_client._exceptions import BadFile
from cnclip_client._listing import files_matching
from cnclip_client._remote import Location, RemotePath, is_remote, located
from cnclip_client.sources._item import Item, Place, told_by
from cnclip_client.sources._lines import about_lines, bounded_lines

__all__ = ["FolderSource", "GlobSource", "ListSource"]

_LONGEST_PATH = 64 * 1024
_FOLDER = "a folder"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """All files in a folder and the folders in it, by name; hidden ones, such as `.DS_Store`, are left out.

    Every other file is an item, whatever its name ends in: one that is no image fails with a reason, rather than
    being passed over. Links are followed, except in circles. One folder's names are in memory at a time, and those
    of the folders above it.

    Attributes:
        path: The folder. Ids are paths relative to it, with forward slashes.
    """

    path: Location
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "folder", "path": str(self.path.absolute())}

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        past = str(after[0]).split("/") if after else []
        if isinstance(self.path, RemotePath):
            items = _walk_remote(self.path, "", past)
        else:
            os.scandir(self.path).close()  # that it cannot be read at all is no item's fault
            items = _walk(os.fspath(self.path), past)
        for item in islice(items, 0 if after else start, None):
            yield Item(item.id, item.value, item.failure, (str(item.id),))

    def total(self) -> int | None:
        return sum(1 for _ in self.items())


class _Level:
    """A folder while what is in it comes out.

    Attributes:
        folder: Its path.
        prefix: Its path as ids begin, with the slash that follows it.
        past: The parts of the last path that was done, from this folder on.
        identity: Its device and inode.
        others: Of the names that are no files, what they are.
        names: Those that are still to come.

    Raises:
        OSError: It cannot be listed.
    """

    def __init__(self, folder: str, prefix: str, past: list[str], identity: tuple[int, int]) -> None:
        self.folder = folder
        self.prefix = prefix
        self.past = past
        self.identity = identity
        names, self.others = _scanned(folder)
        self.names = iter(names[bisect.bisect_left(names, past[0] if past else "") :])


def _walk(root: str, past: list[str]) -> Iterator[Item]:
    """Yields what is in a folder and in those in it, however deep they are.

    Args:
        root: The folder.
        past: The parts of the last path that was done; those up to it are left out.
    """
    levels: list[_Level] = []
    entering = (root, "", past)
    while True:
        try:
            identity = identity_of(entering[0])
            if all(identity != above.identity for above in levels):
                levels.append(_Level(*entering, identity))
        except OSError as error:
            if is_of_all(error) or not levels or not is_still(root, levels[0].identity):
                raise
            if entering[2] != [""]:  # then it is itself the last that was done
                yield Item(entering[1], None, f"cannot be listed: {error.strerror}")
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                levels.pop()
                continue
            what = level.others.get(name, "")
            shown, path = level.prefix + named(name), f"{level.folder}/{name}"
            is_past = bool(level.past) and name == level.past[0]
            if what == _FOLDER:
                entering = (path, f"{shown}/", level.past[1:] if is_past else [])
                break
            if not is_past:
                # To open a pipe would wait for its writer.
                yield Item(shown, None, what) if what else Item(shown, path)
        else:
            return


def _scanned(folder: str) -> tuple[list[str], dict[str, str]]:
    """Returns the names in a folder, sorted, and of those that are no files what they are. Raises OSError."""
    names: list[str] = []
    others: dict[str, str] = {}
    with os.scandir(folder) as scanned:
        for entry in scanned:
            if entry.name.startswith("."):
                continue
            # Only names are kept, some 100 bytes each.
            names.append(entry.name)
            try:
                if entry.is_dir():
                    others[entry.name] = _FOLDER
                elif not entry.is_file():
                    others[entry.name] = "is no file, or a broken link"
            except OSError as error:  # a link to itself
                if is_of_all(error):
                    raise
                others[entry.name] = str(error.strerror)
    names.sort()
    return names, others


def _walk_remote(folder: RemotePath, prefix: str, past: list[str]) -> Iterator[Item]:
    done = past[0] if past else ""
    for name, is_folder in folder.names():
        further = past[1:] if name == done else []
        if name < done:
            continue
        if is_folder:
            yield from _walk_remote(folder / name, f"{prefix}{name}/", further)
        elif not past or name != done:
            yield Item(prefix + name, str(folder / name))


def named(path: str) -> str:
    """Returns a path as an id: the same in any locale, as a name's bytes are UTF-8, or escaped where they are not."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class GlobSource:
    """The files that a pattern matches, `**` standing for any folders.

    One that matches nothing, as where it is misspelt or a disk is not mounted, raises `BadFile` when it is read.

    Attributes:
        pattern: As Python's `glob` takes it, or an address as fsspec's does. Ids are the paths as it gives them,
            sorted.
    """

    pattern: str
    kind: Literal["image"] = "image"
    # Its paths, once they are known, and why those that are folders cannot be listed: a long listing takes minutes. Who
    # reads it anew after its end, such as another job of this process, is to see what has come since.
    _found: list[tuple[list[str], dict[str, str]]] = field(default_factory=list, repr=False, compare=False)

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "glob", "path": str(located(self.pattern).absolute())}

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        paths, failures = self._listed()
        name = str if is_remote(self.pattern) else named
        for path in islice(paths, start, None):
            one = name(path)
            yield Item(one, None if path in failures else path, failures.get(path, ""))
        self._found.clear()

    def total(self) -> int | None:
        return len(self._listed()[0])

    def _listed(self) -> tuple[list[str], dict[str, str]]:
        # Sorting needs all the names at once: 100 bytes or so for each match.
        with suppress(IndexError):
            return self._found[0]
        failures: dict[str, str] = {}

        def unlisted(folder: str, error: OSError) -> None:
            if is_of_all(error):
                raise error
            failures[folder] = f"cannot be listed: {error.strerror}"

        if isinstance(place := located(self.pattern), RemotePath):
            paths = [state.name for state in place.matching()]
        else:
            paths = files_matching(self.pattern, unlisted)
        if failures:
            paths = sorted([*paths, *failures])
        if not paths:
            raise BadFile("no file matches it; check the pattern", path=self.pattern)
        self._found.append((paths, failures))
        return paths, failures


@dataclass(frozen=True, slots=True)
class ListSource:
    """A text file with the path of an image in each line, relative to the current folder; blank lines are left out.

    Attributes:
        path: The list. Ids are its lines.
    """

    path: Location
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return told_by("list", self.path)

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        filled = (line for line in bounded_lines(self.path, _LONGEST_PATH, after) if line.text)
        for line in islice(filled, 0 if after else start, None):
            if not line.whole:
                yield Item(f"line {line.number}", None, f"is longer than {_LONGEST_PATH:,} bytes", line.after)
            else:
                path = os.fsdecode(line.text)
                yield Item(named(path), path, after=line.after)

    def total(self) -> int | None:
        return about_lines(self.path)
