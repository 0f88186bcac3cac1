"""Cuts one stream of what was encoded where parts end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cnclip_client.extraction._course import Course
from cnclip_client.extraction._encoding import Encoded
from cnclip_client.sources import Place

__all__ = ["Piece", "cut"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What came out of some items of one part, or its end.

    Attributes:
        part: Its number.
        encoded: The outcome; None is the part's end.
        after: Where the source goes on after them, where that is known.
    """

    part: int
    encoded: Encoded | None
    after: Place = ()


def cut(stream: Iterable[Encoded], course: Course, begun: Mapping[int, int], size: int) -> Iterator[Piece]:
    """Yields pieces of one part after the other, and the end of each as soon as it is there.

    Args:
        stream: The outcome of the course's items, in their order, in blocks of any size.
        course: Where they come from.
        begun: Number of a part -> how many of its items were done before.
        size: Items in each part but the last.
    """
    parts, ends = course.parts, course.ends
    done = 0  # of the part that is first in `parts`, before and now

    def ended() -> Iterator[Piece]:
        """Yields the ends of parts that have no item that is still to be done."""
        nonlocal done
        while parts and parts[0] in ends and ends[parts[0]].items == (done or begun.get(parts[0], 0)):
            yield Piece(parts.popleft(), None)
            done = 0

    for encoded in stream:
        rest = encoded
        while rest.items:
            yield from ended()
            done = done or begun.get(parts[0], 0)
            piece, rest = rest.split(min(size - done, len(rest.items)))
            done += len(piece.items)
            yield Piece(parts[0], piece, [course.after.popleft() for _ in piece.items][-1])
        yield from ended()
    yield from ended()
