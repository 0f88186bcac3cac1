"""Samples: what belongs together by its name, as WebDataset has it in tars and img2dataset also in folders.

`000/17.jpg`, `000/17.txt` and `000/17.json` follow each other and are one sample, whose key is `000/17`: the name up to
the first dot of its last part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cnclip_client._flow.items import too_large
from cnclip_client._texts import NO_UTF8
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.sources._item import Item, Place, checked_id
from cnclip_client.sources._tar_file import TornTar

__all__ = ["IMAGE_ENDINGS", "MOST_TEXT_BYTES", "Part", "Wanted", "items_of"]

IMAGE_ENDINGS = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jp2", "avif"])
_MOST_SHOWN = 8
MOST_TEXT_BYTES = 4 * 1024 * 1024


class Part(NamedTuple):
    """A file of a sample.

    Attributes:
        name: Its name, with the folders it is in.
        what: What it is, if it is no file; else empty.
        size: Its bytes, or -1 where that is not known.
        read: Gives them, or so many that more than are taken are told; or a path where they are better read later.
        begin: Where it begins, as a source's place.
        end: Where what follows it begins.
    """

    name: str
    what: str
    size: int
    read: Callable[[], str | bytes]
    begin: Place
    end: Place


@dataclass(frozen=True, slots=True)
class Wanted:
    """What becomes of a sample.

    Attributes:
        kind: Whether its image or its text is the item.
        id_column: The key of its .json that holds the id; without one it is the sample's key.
        column: For images the ending of the file, without one the first that is an image's; for texts a key of the
            .json, without one the .txt is it.
        item_bytes: The largest image taken.
    """

    kind: Kind
    id_column: str | None
    column: str | None
    item_bytes: int

    def takes(self, ending: str) -> bool:
        """Whether a part with this ending is the item."""
        if self.kind == "text":
            return ending == ("json" if self.column else "txt")
        if self.column:
            return ending == self.column.lower().lstrip(".")
        return ending.rpartition(".")[2] in IMAGE_ENDINGS

    def missing(self, endings: list[str]) -> str:
        """Says of a sample that it is not there."""
        there = _shown(endings)
        if self.kind == "text":
            hint = "" if self.column or "json" not in endings else "; --column names a key of the .json"
            return f"has no {'.json' if self.column else '.txt'} among {there}{hint}"
        return f"has no {'.' + self.column.lstrip('.') if self.column else 'image'} among {there}"


def _shown(endings: list[str]) -> str:
    more = f" and {len(endings) - _MOST_SHOWN:,} more" if len(endings) > _MOST_SHOWN else ""
    return ", ".join(f".{ending}" for ending in endings[:_MOST_SHOWN]) + more


class _Sample:
    """What is known of a sample while its parts come."""

    def __init__(self, key: str, wanted: Wanted, skipped: bool, id_only: bool) -> None:
        self._key = key
        self._wanted = wanted
        self._skipped = skipped
        self._id_only = id_only
        self._endings: dict[str, None] = {}
        self._taken: list[str] = []
        self._value: str | bytes | None = None
        self._json: bytes | None = None
        self._failure = ""

    def has(self, ending: str) -> bool:
        """Whether there was a part with this ending."""
        return ending in self._endings

    def add(self, ending: str, part: Part) -> None:
        """Takes a part in, and reads it if it is wanted."""
        self._endings[ending] = None
        wanted = self._wanted
        of_json = ending == "json" and bool(wanted.id_column or (wanted.column and wanted.kind == "text"))
        is_item = wanted.takes(ending) and self._is_first(ending)
        if self._skipped or not (is_item or of_json):
            return
        if part.what:
            self._failure = f"{part.name} is {part.what}, and no plain file"
        elif of_json:
            self._json = self._bytes(part)
        elif wanted.kind == "text":
            self._value = self._bytes(part)
        elif part.size > wanted.item_bytes and not self._id_only:
            self._failure = too_large(wanted.item_bytes)
        elif not self._id_only:
            self._value = self._read(part)

    def _is_first(self, ending: str) -> bool:
        """Whether it is to be the item: `17.jpg` is before `17.mask.png`, whichever comes first."""
        plain = "." not in ending
        first = not self._taken or (plain and "." in self._taken[0])
        if first and plain:
            self._taken = [ending]
            self._value, self._failure = None, ""
        elif first or (not plain and "." in self._taken[0]):
            self._taken.append(ending)
        return first

    def _read(self, part: Part) -> str | bytes | None:
        try:
            return part.read()
        except TornTar as error:
            # It counts all the same, as it does where it is passed over and nothing of it is read.
            self._failure = f"{part.name} {error}"
            return None

    def _bytes(self, part: Part) -> bytes | None:
        data = None if part.size > MOST_TEXT_BYTES else self._read(part)
        if max(part.size, len(data or b"")) > MOST_TEXT_BYTES:
            self._failure = f"{part.name} is larger than {MOST_TEXT_BYTES:,} bytes"
            return None
        return data.encode() if isinstance(data, str) else data

    def item(self, after: Place) -> Item:
        """Returns it, once all its parts have come. Of several things that are wrong with it the first is told."""
        told, no_json = self._told()
        name, no_id = self._name(told)
        value, no_text = self._text(told) if self._wanted.kind == "text" else (self._value, "")
        failure = self._several_images() or self._failure or no_json or no_id or self._missing() or no_text
        return Item(name, None if failure else value, failure, after)

    def _told(self) -> tuple[Mapping[str, object], str]:
        """Returns what its .json tells, or why that cannot be read."""
        if self._json is None:
            return {}, ""
        try:
            told = json.loads(self._json)
        except UnicodeDecodeError:
            return {}, f"its .json {NO_UTF8}"
        except (ValueError, RecursionError) as error:
            return {}, f"its .json is none: {' '.join(str(error).split())}"
        return (told, "") if isinstance(told, dict) else ({}, "")

    def _name(self, told: Mapping[str, object]) -> tuple[Id, str]:
        column = self._wanted.id_column
        if not column or self._skipped:
            return self._key, ""
        try:
            return checked_id(told.get(column)), ""
        except ValueError:
            return self._key, f"its .json has no {column!r} that is an integer or a string"

    def _text(self, told: Mapping[str, object]) -> tuple[str | None, str]:
        column, data = self._wanted.column, self._value
        if column and not self._skipped:
            text = told.get(column)
            return (text, "") if isinstance(text, str) else (None, f"its .json has no {column!r} that is a string")
        try:
            # A line's end is the file's, and not the text's.
            return data.decode().rstrip("\r\n") if isinstance(data, bytes) else None, ""
        except UnicodeDecodeError:
            return None, NO_UTF8

    def _several_images(self) -> str:
        if len(self._taken) < 2:
            return ""
        return (
            f"has {len(self._taken):,} images, {_shown(self._taken)}: --column says which is meant; names of several "
            "samples differ before their first dot"
        )

    def _missing(self) -> str:
        return "" if self._taken else self._wanted.missing([*self._endings])


def items_of(
    parts: Iterable[Part], wanted: Wanted, number: int, start: int, with_values: int
) -> Generator[Item, None, int]:
    """Yields an item for each sample from `start` on.

    Args:
        parts: The files, those of a sample after each other.
        wanted: What of them.
        number: The number of the first sample.
        start: That of the first item that comes out; nothing is read of those before.
        with_values: That of the first item whose value is wanted.

    Returns:
        The number behind the last sample.
    """
    sample: _Sample | None = None
    key = ""
    end: Place = ()
    for part in parts:
        folder, slash, name = part.name.removeprefix("./").rpartition("/")
        stem, dot, ending = name.partition(".")
        if not stem or not dot or part.what == "a folder":
            continue  # hidden, or none of a sample
        ending = ending.lower()
        # A file that comes again, as `tar -r` adds it, is of another sample: none is lost.
        if sample is None or key != f"{folder}{slash}{stem}" or sample.has(ending):
            if sample is not None and number > start:
                yield sample.item(part.begin)
            key = f"{folder}{slash}{stem}"
            sample = _Sample(key, wanted, number < start, number < with_values)
            number += 1
        sample.add(ending, part)
        end = part.end
    if sample is not None and number > start:
        yield sample.item(end)
    return number
