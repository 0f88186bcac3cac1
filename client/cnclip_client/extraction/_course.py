"""The way through a source that one of several jobs takes: the items of its own parts, as far as they are not done."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import JobRefused
from cnclip_client.extraction._parts_folder import PartRecord
from cnclip_client.extraction._sharding import Sharding
from cnclip_client.extraction._work_folder import Progress
from cnclip_client.extraction._writing import told_apart
from cnclip_client.sources import Item, Place, Source

__all__ = ["Chain", "Course", "End", "Reader", "require_same_items", "state_of_source"]


@dataclass(frozen=True, slots=True)
class End:
    """Where a part ends.

    Attributes:
        items: How many it has.
        last: Whether the source ends there.
        after: Where the source goes on.
    """

    items: int
    last: bool
    after: Place = ()


class Chain:
    """A digest of items that goes on from what it came to so far: the items before are not needed for it."""

    def __init__(self, so_far: str = "") -> None:
        self._digest = bytes.fromhex(so_far)

    def update(self, data: bytes, /) -> None:
        self._digest = hashlib.blake2b(self._digest + data, digest_size=16).digest()

    def hexdigest(self) -> str:
        return self._digest.hex()


class Course:
    """Gives the items, part after part, and remembers where each part ends.

    Args:
        source: What is read, once, by one thread at a time.
        sharding: Which parts are this job's.
        whole: The records of the parts that are whole, whoever did them; of this state of the source.
        begun: How far the work on parts of this job's is, likewise.

    Attributes:
        parts: The numbers of the parts that were begun and not yet taken, in the order of their items.
        ends: Number of a part -> where it ends; known before its last item is given.
        after: For each item that was given and not yet taken, where the source goes on after it.
    """

    def __init__(
        self,
        source: Source,
        sharding: Sharding,
        whole: Mapping[int, PartRecord],
        begun: Mapping[int, Progress],
    ) -> None:
        self._source = source
        self._sharding = sharding
        self._whole = whole
        self._begun = begun
        self.parts: deque[int] = deque()
        self.ends: dict[int, End] = {}
        self.after: deque[Place] = deque()

    def is_done(self) -> bool:
        """Whether it is known that there is no item to give."""
        last = self._last()
        return last is not None and all(number in self._whole for number in self._sharding.numbers(last))

    def items(self) -> Iterator[Item]:
        """Yields the items of one part after the other.

        Raises:
            BadFile: As the source.
            OSError: As the source.
        """
        reader = Reader(self._source)
        for number in self._sharding.numbers(self._last()):
            if number in self._whole:
                continue
            done = self._begun.get(number, Progress())
            if not reader.go_to(number * self._sharding.items + done.items, self._known(number, done)):
                return  # the source ended before it
            if number > 0 and done.items == 0 and reader.ended():
                return
            self.parts.append(number)
            count, after = done.items, done.after
            while not self._ends(number, count, after, reader):
                item = next(reader)
                count, after = count + 1, reader.after
                self._ends(number, count, after, reader)
                self.after.append(after)
                yield item

    def _ends(self, number: int, count: int, after: Place, reader: Reader) -> bool:
        """Tells whether a part ends after so many items, and remembers that it does."""
        if number not in self.ends and (count == self._sharding.items or reader.ended()):
            self.ends[number] = End(count, reader.ended(), after)
        return number in self.ends

    def _last(self) -> int | None:
        """Returns the number of the last part, if that is known."""
        return next((number for number, record in self._whole.items() if record.last), None)

    def _known(self, number: int, done: Progress) -> tuple[int, Place]:
        """Returns the number of an item that comes no later than those wanted, and where the source goes on there."""
        first = number * self._sharding.items
        if done.after:
            return first + done.items, done.after
        before = max((one for one in self._whole if one < number and self._whole[one].after), default=None)
        return ((before + 1) * self._sharding.items, self._whole[before].after) if before is not None else (0, ())


class Reader:
    """Reads a source forwards, and passes over what is not wanted as cheaply as the source can.

    Attributes:
        position: The number of the next item.
        after: Where the source goes on after the one before; empty where that is not known.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._can_start = "start" in inspect.signature(source.items).parameters
        self._items: Iterator[Item] | None = None
        self._waiting: Item | None = None
        self._failure: Exception | None = None
        self.position = 0
        self.after: Place = ()

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Item:
        """Returns the next item. Raises StopIteration, and as the source does."""
        self._look()
        if self._failure is not None:
            raise self._failure
        if self._waiting is None:
            raise StopIteration
        item, self._waiting = self._waiting, None
        self.position += 1
        after: Place = getattr(item, "after", ())
        self.after = after
        return item

    def ended(self) -> bool:
        """Whether there is no next item; that it cannot be read is told when it is asked for."""
        self._look()
        return self._waiting is None and self._failure is None

    def go_to(self, target: int, known: tuple[int, Place] = (0, ()), *, ids_only: int = 0) -> bool:
        """Goes forward to an item.

        Args:
            target: Its number.
            known: The number of an item not after it, and where the source goes on before that one.
            ids_only: So many items from there are wanted for their ids alone.

        Returns:
            Whether there are as many items before it.
        """
        if self._items is None or (self._can_start and target > self.position):
            self._begin(target, known, ids_only)
        while self.position < target and not self.ended():
            next(self)
        return self.position == target

    def _begin(self, target: int, known: tuple[int, Place], ids_only: int) -> None:
        start, after = max(known, (self.position, self.after), key=lambda one: (bool(one[1]), one[0]))
        self._waiting = None
        if not self._can_start:
            self.position, self.after = 0, ()
            self._items = iter(self._source.items(target + ids_only))
        elif after:
            self.position, self.after = start, after
            self._items = self._source.items(target - start + ids_only, start=start, after=after)
        else:
            self.position, self.after = target, ()
            self._items = self._source.items(ids_only, start=target)

    def _look(self) -> None:
        if self._waiting is None and self._failure is None and self._items is not None:
            try:
                self._waiting = next(self._items, None)
            except Exception as error:
                self._failure = error


def require_same_items(items: Iterator[Item], source: Source, count: int, digest: str, part: int) -> None:
    """Passes over items that were done. Raises JobRefused if they are others now."""
    chain = Chain()
    seen = 0
    while seen < count and (item := next(items, None)) is not None:
        chain.update(told_apart(source.kind, item))
        seen += 1
    if seen < count or chain.hexdigest() != digest:
        raise JobRefused(
            f"the source has changed: the items of part {part} are not those that were done; give another --output, or "
            "--overwrite what is of other items",
            output=str(source.fingerprint.get("path", "")),
        )


def state_of_source(fingerprint: Mapping[str, Any]) -> str:
    """Returns a digest of names, sizes and times: while it stays, no item has changed. Empty if there is none."""
    known: Any = fingerprint.get("files")
    path = fingerprint.get("path")
    if known is None and isinstance(path, str) and "://" not in path:
        if fingerprint.get("format") == "folder":
            known = _folders(path)
        elif file := next(filter(Path.is_file, (Path(path), Path(path, "data.mdb"))), None):
            status = file.stat()
            known = [status.st_size, status.st_mtime_ns]
    return "" if known is None else hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


def _folders(path: str) -> str:
    """Returns a digest of a folder and those in it with their times, which change with every name that comes or goes.

    What is only in them is not looked at: of a million images that would take seconds.
    """
    found = hashlib.blake2b(digest_size=16)
    waiting, seen = [path], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 - of paths that need be no text
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            found.update(f"{os.fsencode(folder)!r} {status.st_mtime_ns}\n".encode())
            with os.scandir(folder) as entries:
                below = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        except OSError as error:
            found.update(f"{os.fsencode(folder)!r} {error.errno}\n".encode())
            continue
        waiting += sorted(below)
    return found.hexdigest()
