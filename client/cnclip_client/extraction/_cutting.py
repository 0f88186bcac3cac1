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
    """What came out of some items of one part.

    Attributes:
        part: Its number.
        encoded: The outcome; None of a part without any item that is still to be done.
        after: Where the source goes on after them, where that is known.
        ends: Whether they are the part's last.
    """

    part: int
    encoded: Encoded | None
    after: Place
    ends: bool


def cut(stream: Iterable[Encoded], course: Course, begun: Mapping[int, int], size: int) -> Iterator[Piece]:
    """Yields pieces of one part after the other.

    Args:
        stream: The outcome of the course's items, in their order, in blocks of any size.
        course: Where they come from.
        begun: Number of a part -> how many of its items were done before.
        size: Items in each part but the last.
    """
    parts, ends = course.parts, course.ends
    done = 0  # of the part that is first in `parts`, before and now

    def without_items() -> Iterator[Piece]:
        """Yields parts that are to be finished and have no item that is still to be done."""
        nonlocal done
        while parts and parts[0] in ends and ends[parts[0]].items == (done or begun.get(parts[0], 0)):
            yield Piece(parts.popleft(), None, (), True)
            done = 0

    for encoded in stream:
        rest = encoded
        while rest.items:
            yield from without_items()
            number = parts[0]
            done = done or begun.get(number, 0)
            end = ends[number].items if number in ends else size
            piece, rest = rest.split(min(end - done, len(rest.items)))
            after = [course.after.popleft() for _ in piece.items][-1]
            done += len(piece.items)
            ended = done == end
            if ended:
                parts.popleft()
                done = 0
            yield Piece(number, piece, after, ended)
    yield from without_items()
