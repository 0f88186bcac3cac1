"""The files of the MUGE data set, which cn_clip's datasets follow, and plain lines of text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pybase64

from cnclip_client._exceptions import BadFile
from cnclip_client._flow.items import too_large
from cnclip_client._remote import Location
from cnclip_client._texts import NO_UTF8
from cnclip_client.sources._item import Item, Place, checked_id, parse_id, told_by
from cnclip_client.sources._lines import Line, about_lines, bounded_lines

__all__ = ["JsonlSource", "LinesSource", "TsvSource", "decode_base64"]

# What is in the failure of a line that has other keys than those that were asked for; lines that are looked at for it.
_OTHER_KEYS = "; name one with "
_LOOKED_AT = 10
_STANDARD = bytes.maketrans(b"-_", b"+/")
_MOST_TEXT_BYTES = 4 * 1024 * 1024
_LONGEST_ID = 4096
_NAMED = 8
_LONGEST_NAMES = 200


def decode_base64(text: bytes, most_bytes: int) -> bytes:
    """Returns what base64 of either alphabet, with its padding or without, stands for.

    Raises:
        ValueError: It is no base64, or stands for more than `most_bytes`.
    """
    text = text.rstrip(b"=")
    if len(text) * 3 // 4 > most_bytes:
        raise ValueError(too_large(most_bytes))
    if b"-" in text or b"_" in text:
        text = text.translate(_STANDARD)
    try:
        # The standard library takes 30 times as long: for a photograph more than all else that the client does with it.
        return pybase64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ValueError("is no base64") from error


@dataclass(frozen=True, slots=True)
class TsvSource:
    """`id<TAB>base64` in each line; blank lines are left out.

    Attributes:
        path: The file.
        item_bytes: The largest image taken, in bytes.
    """

    path: Location
    item_bytes: int
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return told_by("tsv", self.path)

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        lines = bounded_lines(self.path, self.item_bytes * 4 // 3 + _LONGEST_ID, after)
        filled = (line for line in lines if line.text.strip())
        for number, line in enumerate(islice(filled, 0 if after else start, None)):
            yield self._item(line, number < ids_only)

    def _item(self, line: Line, id_only: bool) -> Item:
        name, tab, text = line.text.partition(b"\t")
        if not tab or not name or len(name) > _LONGEST_ID:
            return Item(f"line {line.number}", None, "is not id<TAB>base64", line.after)
        # Bytes that are no UTF-8 are kept, as in an LMDB's key or a list's path: no two ids become one.
        one = parse_id(name.decode("utf-8", "surrogateescape"))
        if id_only:
            return Item(one, None, after=line.after)
        if not line.whole:
            return Item(one, None, too_large(self.item_bytes), line.after)
        try:
            return Item(one, decode_base64(text.strip(), self.item_bytes), after=line.after)
        except ValueError as error:
            return Item(one, None, str(error), line.after)

    def total(self) -> int | None:
        return about_lines(self.path)


@dataclass(frozen=True, slots=True)
class JsonlSource:
    """A JSON object with an id and a text in each line; blank lines are left out.

    Attributes:
        path: The file.
        id_column: The key of the id.
        column: The key of the text; a number is taken for its digits, as cn_clip does.
    """

    path: Location
    id_column: str = "text_id"
    column: str = "text"
    kind: Literal["text"] = "text"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return told_by("jsonl", self.path, id_column=self.id_column, column=self.column)

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        filled = (line for line in bounded_lines(self.path, _MOST_TEXT_BYTES, after) if line.text.strip())
        for line in islice(filled, 0 if after else start, None):
            yield self._item(line)

    def require_keys(self) -> None:
        """Refuses a file of objects with other keys. Raises BadFile if its first lines all are."""
        first = list(islice(self.items(), _LOOKED_AT))
        if first and all(_OTHER_KEYS in one.failure for one in first):
            raise BadFile(f"none of its first lines is a text: {first[0].id} {first[0].failure}", path=str(self.path))

    def _item(self, line: Line) -> Item:
        name = f"line {line.number}"
        if not line.whole:
            return Item(name, None, f"is longer than {_MOST_TEXT_BYTES:,} bytes", line.after)
        try:
            found = json.loads(line.text)
            one = checked_id(found[self.id_column])
        except UnicodeDecodeError:
            return Item(name, None, NO_UTF8, line.after)
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            return Item(name, None, f"is no JSON object with an id: {reason}", line.after)
        except (KeyError, TypeError):
            keys = _keys(found, "--id-column")
            return Item(name, None, f"is no JSON object with {self.id_column!r}{keys}", line.after)
        text = found.get(self.column)
        if isinstance(text, str):
            return Item(one, text, after=line.after)
        # NaN is how pandas and numpy say that there is none; bool is Python's int, and no number of JSON's.
        if isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text):
            return Item(one, str(text), after=line.after)
        keys = "" if self.column in found else _keys(found, "--column")
        return Item(one, None, f"its {self.column!r} is missing or no string{keys}", line.after)

    def total(self) -> int | None:
        return about_lines(self.path)


def _keys(found: Any, option: str) -> str:
    """Returns what a JSON object has, to choose from; nothing of what is none."""
    named = ", ".join(islice(found, _NAMED)) if isinstance(found, dict) else ""
    return f"{_OTHER_KEYS}{option}: {named[:_LONGEST_NAMES]}" if named else ""


@dataclass(frozen=True, slots=True)
class LinesSource:
    """A text in each line, blank ones included; ids are the lines' numbers, from 1.

    Attributes:
        path: The file.
    """

    path: Location
    kind: Literal["text"] = "text"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return told_by("lines", self.path)

    def numbers(self) -> range:
        """Returns the ids; reads the file."""
        return range(1, 1 + sum(1 for _ in self.items()))

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        for line in bounded_lines(self.path, _MOST_TEXT_BYTES, after):
            if line.number <= start:
                continue
            if not line.whole:
                yield Item(line.number, None, f"is longer than {_MOST_TEXT_BYTES:,} bytes", line.after)
                continue
            try:
                yield Item(line.number, line.text.decode(), after=line.after)
            except UnicodeDecodeError:
                yield Item(line.number, None, NO_UTF8, line.after)

    def total(self) -> int | None:
        return about_lines(self.path)
