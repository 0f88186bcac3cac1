"""What every source gives: items with ids, in one order however often it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cnclip_client._vocabulary import Id, Kind

__all__ = ["Item", "Source", "checked_id", "parse_id"]

# Longer ones are no number that anybody counts with, and slow to convert.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,39}")


@dataclass(frozen=True, slots=True)
class Item:
    """An image or a text, or the reason why there is none.

    Attributes:
        id: As the user's files have it; of an item without a usable one, where it stands, such as `line 7`.
        value: A text; or an encoded image's bytes or the path of its file. None if it failed, or was not wanted.
        failure: Why it cannot be had; empty if it can.
    """

    id: Id
    value: str | bytes | None
    failure: str = ""


class Source(Protocol):
    """Items in an order that does not change, as long as the files do not."""

    @property
    def kind(self) -> Kind:
        """Whether they are images or texts."""

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        """What tells this source from another, cheaply: JSON values; `size_bytes` if it shows every change."""

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        """Yields the items, in memory that does not grow with their number.

        Args:
            ids_only: So many items come first whose values are not wanted, and not read if that saves time.

        Raises:
            BadFile: A file is not what it should be, and no single item can be blamed.
            OSError: It cannot be read.
        """

    def total(self) -> int | None:
        """Returns how many items there are, or about how many, for a progress bar; it may take a while."""


def parse_id(text: str) -> Id:
    """Returns an integer if it is written as Python would write one, else the text itself.

    cn_clip takes ids of TSV and LMDB for integers. Only those come back as they went in: `007` stays as it is.
    """
    return int(text) if _INTEGER.fullmatch(text) else text


def checked_id(value: Any) -> Id:
    """Returns an id as it is.

    Raises:
        ValueError: It is neither an integer nor a string.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(  # noqa: TRY004 - of a file, not of a caller
            f"its id is {type(value).__name__}, neither an integer nor a string"
        )
    return value
