"""How a source's items are shared out among parts, and the parts among jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Literal, TypeAlias, get_args

__all__ = ["PartFormat", "Sharding"]

PartFormat: TypeAlias = Literal["parquet", "npy", "jsonl"]

_SHARD = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Parts of so many items each, and which of them are one job's.

    Attributes:
        items: Items of the source in each part, those that fail included; the last one has what is left.
        format: Of the parts' files.
        index: Of `jobs` jobs, from 0, this one does the parts whose number leaves this when divided by their count.
        jobs: How many there are.
    """

    items: int = 100_000
    format: PartFormat = "parquet"
    index: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ValueError(f"a part needs at least one item, got {self.items}")
        if self.format not in get_args(PartFormat):
            raise ValueError(f"parts are {', '.join(get_args(PartFormat))}; got {self.format!r}")
        if not 0 <= self.index < self.jobs:
            raise ValueError(f"of {self.jobs} jobs each is one of 0 to {self.jobs - 1}; got {self.index}")

    @staticmethod
    def parse(shard: str) -> tuple[int, int]:
        """Returns the index and the count that `I/N` means. Raises ValueError."""
        match = _SHARD.fullmatch(shard)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(f"--shard {shard}: give I/N, I from 0 to N - 1, such as 0/8 for the first of 8 jobs")
        return int(match[1]), int(match[2])

    def numbers(self, last: int | None) -> Iterator[int]:
        """Yields the numbers of this job's parts, to that of the last of all, where that is known."""
        return takewhile(lambda number: last is None or number <= last, count(self.index, self.jobs))

    def own(self, number: int) -> bool:
        """Whether a part is this job's."""
        return number % self.jobs == self.index

    def items_of(self, total: int) -> int:
        """Returns how many of a source's items are in this job's parts."""
        rounds, rest = divmod(total, self.items * self.jobs)
        return rounds * self.items + min(max(rest - self.index * self.items, 0), self.items)
