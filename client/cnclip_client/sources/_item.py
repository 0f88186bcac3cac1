"""What every source gives: items with ids, in one order however often it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from cnclip_client._remote import Location, state_digest, state_of
from cnclip_client._vocabulary import Id, Kind

__all__ = ["Item", "Place", "Source", "checked_id", "parse_id", "told_by"]

Place: TypeAlias = Sequence[int | str]
"""Where a source goes on after an item, in its own terms and in JSON's values; empty if only its number tells."""

# Longer ones are no number that anybody counts with, and slow to convert.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,39}")


@dataclass(frozen=True, slots=True)
class Item:
    """An image or a text, or the reason why there is none.

    Attributes:
        id: As the user's files have it; of an item without a usable one, where it stands, such as `line 7`.
        value: A text; or an encoded image's bytes or the path of its file. None if it failed, or was not wanted.
        failure: Why it cannot be had; empty if it can.
        after: Where the source goes on after it, for `Source.items`; empty where its number alone is as good.
    """

    id: Id
    value: str | bytes | None
    failure: str = ""
    after: Place = field(default=(), compare=False)


class Source(Protocol):
    """Items in an order that does not change, as long as the files do not."""

    @property
    def kind(self) -> Kind:
        """Whether they are images or texts."""

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        """What tells this source from another, cheaply: JSON values; `files` if it shows every change.

        `files` is a digest of the names, sizes and times (or what a store tells a version by) of all that is read.
        """

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        """Yields the items, in memory that does not grow with their number.

        Args:
            ids_only: Of so many of the items that come out first the values are not wanted, and not read if that saves
                time.
            start: The number of the first item wanted; those before it are passed over as cheaply as the format
                allows, and ids are what they are without it.
            after: What `Item.after` was of the item before `start`, as it came or from JSON, where it is known: then
                nothing of what is before is read. It holds as long as the fingerprint does.

        Raises:
            BadFile: A file is not what it should be, and no single item can be blamed.
            OSError: It cannot be read.
        """

    def total(self) -> int | None:
        """Returns how many items there are, or about how many, for a progress bar; it may take a while."""


def told_by(format: str, path: Location, **more: str | int | None) -> Mapping[str, str | int | None]:
    """Returns the fingerprint of a source that is one file. Raises OSError."""
    state = state_of(path)
    known: dict[str, str | int | None] = {"format": format, "path": str(path.absolute())}
    return {**known, "size_bytes": state.size_bytes, "files": state_digest([state]), **more}


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
            f"its id is {'null' if value is None else type(value).__name__}, neither an integer nor a string"
        )
    return value
