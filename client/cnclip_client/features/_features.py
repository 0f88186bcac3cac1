"""Features with the ids of what they are of: what the batch jobs read, write and search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cnclip_client.features._ids import join_ids

__all__ = ["Features", "Rows", "rebatch", "rows_in"]

Rows: TypeAlias = tuple[list[Any], NDArray[np.float32]]
"""What a format's reader yields: n ids as the file has them, and float32 [n, D], of which it keeps nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Some images or texts: row i of `features` is the feature of `ids[i]`.

    Attributes:
        ids: [n], int64, or object where an id is a string (or an integer past 64 bits).
        features: float32 [n, D].

    Raises:
        ValueError: The shapes or types are others, or a feature holds NaN or infinity.
    """

    ids: NDArray[Any]
    features: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.dtype != np.float32 or len(self.ids) != len(self.features):
            raise ValueError(
                f"{len(self.ids)} ids need features of float32 [{len(self.ids)}, D], "
                f"got {self.features.dtype} {list(self.features.shape)}"
            )
        finite = np.isfinite(self.features).all(axis=1)
        if not finite.all():
            (one,) = self.ids[[finite.argmin()]].tolist()  # numpy 2 would show 7 as np.int64(7)
            raise ValueError(f"the feature of {one!r} holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> Features:
        return Features(self.ids[rows], self.features[rows])


def rebatch(blocks: Iterable[Features], rows: int) -> Iterator[Features]:
    """Yields the same items in blocks of `rows`, the last one smaller, however many the given ones hold."""
    waiting: list[Features] = []
    count = 0
    for block in blocks:
        start = 0
        while start < len(block):
            taken = block[start : start + rows - count]
            waiting.append(taken)
            start += len(taken)
            count += len(taken)
            if count == rows:
                yield _join(waiting)
                waiting, count = [], 0
    if waiting:
        yield _join(waiting)


def _join(blocks: list[Features]) -> Features:
    if len(blocks) == 1:
        return blocks[0]
    return Features(join_ids([block.ids for block in blocks]), np.concatenate([block.features for block in blocks]))


def rows_in(block_bytes: int, size: int) -> int:
    """Returns how many features of so many numbers a block has room for, one at least."""
    return max(1, block_bytes // (4 * max(1, size)))
