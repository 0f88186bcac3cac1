"""Features with the ids of what they are of: what the batch jobs read, write and search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Features", "id_array", "join_ids", "rebatch"]


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
            raise ValueError(f"the feature of {self.ids[int(finite.argmin())]!r} holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> Features:
        return Features(self.ids[rows], self.features[rows])


def id_array(ids: list[Any]) -> NDArray[Any]:
    """Returns ids as `Features` holds them: int64 where they all are integers that fit, else object."""
    if all(type(one) is int for one in ids):
        try:
            return np.array(ids, dtype=np.int64)
        except OverflowError:
            pass
    held = np.empty(len(ids), dtype=object)
    held[:] = ids
    return held


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


def join_ids(ids: list[NDArray[Any]]) -> NDArray[Any]:
    """Returns several blocks' ids as one array: int64 if each of them is, else object with Python's own integers."""
    if all(part.dtype == np.int64 for part in ids):
        return np.concatenate(ids) if ids else np.empty(0, np.int64)
    return id_array([one for part in ids for one in part.tolist()])
