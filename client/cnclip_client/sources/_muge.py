"""The files of the MUGE data set, which cn_clip's datasets follow, and plain lines of text."""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnclip_client.sources._item import Item, checked_id, parse_id
from cnclip_client.sources._lines import about_lines, bounded_lines

__all__ = ["JsonlSource", "LinesSource", "TsvSource", "decode_base64"]

_STANDARD = bytes.maketrans(b"-_", b"+/")
_MOST_TEXT_BYTES = 4 * 1024 * 1024
_LONGEST_ID = 4096


def decode_base64(text: bytes, most_bytes: int) -> bytes:
    """Returns what base64 of either alphabet, with its padding or without, stands for.

    Raises:
        ValueError: It is no base64, or stands for more than `most_bytes`.
    """
    text = text.rstrip(b"=")
    if len(text) * 3 // 4 > most_bytes:
        raise ValueError(f"is larger than {most_bytes:,} bytes")
    text = text.translate(_STANDARD) + b"=" * (-len(text) % 4)
    try:
        decoded = binascii.a2b_base64(text)
    except binascii.Error as error:
        raise ValueError("is no base64") from error
    # a2b_base64 passes over what is no base64, and only newer Pythons have it refuse.
    if len(decoded) != len(text) // 4 * 3 - text.count(b"=", -2 if text else 0):
        raise ValueError("is no base64")
    return decoded


@dataclass(frozen=True, slots=True)
class TsvSource:
    """`id<TAB>base64` in each line; blank lines are left out.

    Attributes:
        path: The file.
        item_bytes: The largest image taken, in bytes.
    """

    path: Path
    item_bytes: int
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "tsv", "path": str(self.path.absolute()), "size_bytes": self.path.stat().st_size}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        seen = 0
        for number, line, whole in bounded_lines(self.path, self.item_bytes * 4 // 3 + _LONGEST_ID):
            if line.strip():
                yield self._item(number, line, whole, seen < ids_only)
                seen += 1

    def _item(self, number: int, line: bytes, whole: bool, id_only: bool) -> Item:
        name, tab, text = line.partition(b"\t")
        if not tab or not name or len(name) > _LONGEST_ID:
            return Item(f"line {number}", None, "is not id<TAB>base64")
        one = parse_id(name.decode("utf-8", "surrogateescape"))
        if id_only:
            return Item(one, None)
        if not whole:
            return Item(one, None, f"is larger than {self.item_bytes:,} bytes")
        try:
            return Item(one, decode_base64(text.strip(), self.item_bytes))
        except ValueError as error:
            return Item(one, None, str(error))

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

    path: Path
    id_column: str = "text_id"
    column: str = "text"
    kind: Literal["text"] = "text"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {
            "format": "jsonl",
            "path": str(self.path.absolute()),
            "size_bytes": self.path.stat().st_size,
            "id_column": self.id_column,
            "column": self.column,
        }

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        for number, line, whole in bounded_lines(self.path, _MOST_TEXT_BYTES):
            if line.strip():
                yield self._item(number, line, whole)

    def _item(self, number: int, line: bytes, whole: bool) -> Item:
        if not whole:
            return Item(f"line {number}", None, f"is longer than {_MOST_TEXT_BYTES:,} bytes")
        try:
            found = json.loads(line)
            one = checked_id(found[self.id_column])
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            return Item(f"line {number}", None, f"is no JSON object with an id: {reason}")
        except (KeyError, TypeError):
            return Item(f"line {number}", None, f"is no JSON object with {self.id_column!r}")
        text = found.get(self.column)
        if isinstance(text, str):
            return Item(one, text)
        if isinstance(text, int | float):
            return Item(one, str(text))
        return Item(one, None, f"its {self.column!r} is missing or no string")

    def total(self) -> int | None:
        return about_lines(self.path)


@dataclass(frozen=True, slots=True)
class LinesSource:
    """A text in each line, blank ones included; ids are the lines' numbers, from 1.

    Attributes:
        path: The file.
    """

    path: Path
    kind: Literal["text"] = "text"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {"format": "lines", "path": str(self.path.absolute()), "size_bytes": self.path.stat().st_size}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        for number, line, whole in bounded_lines(self.path, _MOST_TEXT_BYTES):
            if whole:
                # Bytes that are no UTF-8 make this one item fail.
                yield Item(number, line.decode("utf-8", "surrogateescape"))
            else:
                yield Item(number, None, f"is longer than {_MOST_TEXT_BYTES:,} bytes")

    def total(self) -> int | None:
        return about_lines(self.path)
