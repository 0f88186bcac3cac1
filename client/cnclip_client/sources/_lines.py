"""Files of lines, however long one is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cnclip_client._remote import Location, state_of
from cnclip_client.sources._item import Place

__all__ = ["Line", "about_lines", "bounded_lines"]

_BUFFER_BYTES = 1024 * 1024
_SAMPLE_BYTES = 4 * _BUFFER_BYTES
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: From 1.
        text: Its bytes without its end (LF or CRLF).
        whole: Whether they are all of it.
        after: Where the next one is, for `bounded_lines`.
    """

    number: int
    text: bytes
    whole: bool
    after: Place


def bounded_lines(path: Location, most_bytes: int, after: Place = ()) -> Iterator[Line]:
    """Yields the lines.

    Args:
        path: The file; a byte order mark at its start is left out.
        most_bytes: A longer line is cut off there.
        after: The `after` of the line before the first one that is wanted; empty for all.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        place, number = (int(one) for one in after) if after else (0, 0)
        if after:
            file.seek(place)
        elif file.read(len(_BOM)) == _BOM:
            place = len(_BOM)
        else:
            file.seek(0)
        # Two more tell a longer line from one that fits with its end.
        while line := file.readline(most_bytes + 2):
            number += 1
            place += len(line)
            whole = line.endswith(b"\n") or len(line) < most_bytes + 2
            while not whole and (rest := file.readline(_BUFFER_BYTES)):
                place += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield Line(number, line.removesuffix(b"\n").removesuffix(b"\r"), whole, (place, number))


def about_lines(path: Location) -> int | None:
    """Returns how many lines a file has, guessed from its first MiBs if it is larger; None of an unknown size."""
    size = state_of(path).size_bytes
    if size < 0:
        return None
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    lines = sample.count(b"\n")
    if len(sample) == size:
        return lines + (not sample.endswith(b"\n") and size > 0)
    return round(size * lines / len(sample)) if lines else None
