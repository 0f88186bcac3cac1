"""Parts of a source that are encoded one after the other, each its own way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cnclip_client._blocks import Block

__all__ = ["Timed", "moved"]


class Timed:
    """Blocks, of which is counted how many items they are of and how long they took; not what the caller takes.

    Attributes:
        items: So many have come out.
        seconds: They took so long.
    """

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self.items = 0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        started = time.monotonic()
        try:
            block = next(self._blocks)
        finally:
            self.seconds += time.monotonic() - started
        self.items = block.stop
        return block


def moved(blocks: Iterable[Block], by: int) -> Iterator[Block]:
    """Yields blocks of a source's later part as those of the whole source."""
    for block in blocks:
        yield (
            block
            if not by
            else replace(
                block,
                start=block.start + by,
                stop=block.stop + by,
                indices=block.indices + by,
                failures={index + by: reason for index, reason in block.failures.items()},
            )
        )
