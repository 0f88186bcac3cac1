"""What the streaming calls yield."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block"]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The outcome of the caller's items `start` to `stop`: every one is either in `indices` or in `failures`.

    Attributes:
        start: Index of the first item in the caller's sequence.
        stop: Index after the last one.
        indices: int64 [k], the items that were encoded, rising.
        features: float32 [k, D], row i the feature of item `indices[i]`.
        failures: Index -> reason of the items that were not encoded, rising.
    """

    start: int
    stop: int
    indices: NDArray[np.int64]
    features: NDArray[np.float32]
    failures: Mapping[int, str]

    def filled(self) -> NDArray[np.float32]:
        """Returns float32 [stop - start, D]: row i is item `start + i`, all NaN where it failed."""
        rows = np.full((self.stop - self.start, self.features.shape[1]), np.nan, dtype=np.float32)
        rows[self.indices - self.start] = self.features
        return rows


def join(blocks: list[Block], embedding_size: int) -> Block:
    """Joins adjoining blocks into one that starts at 0; no blocks at all give an empty one of [0, D]."""
    return Block(
        start=0,
        stop=blocks[-1].stop if blocks else 0,
        indices=np.concatenate([np.empty(0, np.int64), *(block.indices for block in blocks)]),
        features=np.concatenate([np.empty((0, embedding_size), np.float32), *(block.features for block in blocks)]),
        failures={row: reason for block in blocks for row, reason in block.failures.items()},
    )


def put_back(whole: Block, order: Sequence[int]) -> Block:
    """Gives items that were sent in another order their own places again.

    Args:
        whole: Starts at 0.
        order: The place of each item that was sent, in the caller's sequence.
    """
    indices = np.asarray(order, dtype=np.int64)[whole.indices]
    rising = np.argsort(indices)
    return Block(
        start=0,
        stop=whole.stop,
        indices=indices[rising],
        features=whole.features[rising],
        failures=dict(sorted((order[row], reason) for row, reason in whole.failures.items())),
    )
