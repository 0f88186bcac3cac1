"""Near duplicates among the rows of an index: each asks it, and is dropped for an earlier one that is near enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._vocabulary import Id
from cnclip_client.index._index import Index
from cnclip_client.index._options import Report
from cnclip_client.index._parts import FeatureFile

__all__ = ["DuplicateGroup", "near_duplicates"]

_NEIGHBOURS, _MOST_NEIGHBOURS = 64, 2**16
_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class DuplicateGroup:
    """An item that is kept, and those that are dropped for it.

    Attributes:
        kept: Its id; it comes first among them.
        dropped: Theirs, in the index's order.
        cosines: float32 [n], of each with the kept one, or with its nearest of very many.
    """

    kept: Id
    dropped: tuple[Id, ...]
    cosines: NDArray[np.float32]


def near_duplicates(index: Index, cosine: float, report: Report | None = None) -> Iterator[DuplicateGroup]:
    """Yields groups of items that are as near as a cosine, in the index's order.

    Row by row: an item is dropped if it is that near to an earlier one that was kept, the nearest of them. So nothing
    is dropped for what itself is dropped, and all that is kept is further apart, as far as the index finds it. Only
    where an item has 64 neighbours that near, the earlier of them all dropped, it goes with the nearest; and where it
    has 65,536, all of them later, it is kept.

    Memory is 12 bytes a row. The index's files of features are read once.

    Args:
        index: Open; of features of length 1.
        cosine: How near is too near.
        report: Called now and then.

    Raises:
        ValueError: The cosine is none.
        BadFile: A file that the index was made of is gone or has changed.
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"a cosine is between -1 and 1, got {cosine}")
    return _groups(index, cosine, report or (lambda *_: None))


def _groups(index: Index, cosine: float, report: Report) -> Iterator[DuplicateGroup]:
    kept_for = np.full(len(index), -1, dtype=np.int64)
    cosines = np.zeros(len(index), dtype=np.float32)
    first = 0
    for features in _features(index):
        scores, rows = index.neighbours(features, min(_NEIGHBOURS, len(index)))
        own = np.arange(first, first + len(features))[:, None]
        earlier = (rows >= 0) & (rows < own) & (scores >= cosine)
        crowded = scores[:, -1] >= cosine
        for number in np.flatnonzero(earlier.any(axis=1) | crowded).tolist():
            row = first + number
            near, cosine_of = _earlier(index, features[number : number + 1], row, scores[number], rows[number], cosine)
            those_kept = np.flatnonzero(kept_for[near] < 0)  # the nearest first
            if len(those_kept):
                kept_for[row], cosines[row] = near[those_kept[0]], cosine_of[those_kept[0]]
            elif crowded[number] and len(near):
                # There are more of them than neighbours: what was kept is as near to these as they are to each other.
                kept_for[row], cosines[row] = kept_for[near[0]], cosine_of[0]
        first += len(features)
        report("comparing", first, len(index))
    dropped = np.flatnonzero(kept_for >= 0)
    order = dropped[np.argsort(kept_for[dropped], kind="stable")]
    starts = np.flatnonzero(np.diff(kept_for[order], prepend=-1))
    for members in np.split(order, starts[1:]) if len(order) else []:
        kept, *others = index.ids_of([int(kept_for[members[0]]), *members.tolist()])
        yield DuplicateGroup(kept, tuple(others), cosines[members])


def _earlier(
    index: Index,
    query: NDArray[np.float32],
    row: int,
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    cosine: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the earlier rows that are near enough, the nearest first, and their cosines.

    Args:
        index: Open.
        query: float32 [1, D], the row's features.
        row: Its number.
        scores: Of its nearest rows, the best first.
        rows: Those.
        cosine: How near is near enough.
    """
    most = min(_MOST_NEIGHBOURS, len(index))
    while True:
        earlier = (rows >= 0) & (rows < row) & (scores >= cosine)
        # The nearest may all be later ones, and an earlier one lie behind them.
        if earlier.any() or scores[-1] < cosine or len(rows) == most:
            return rows[earlier], scores[earlier]
        (scores,), (rows,) = index.neighbours(query, min(4 * len(rows), most))


def _features(index: Index) -> Iterator[NDArray[np.float32]]:
    record = index.record
    for part in record.parts:
        file = FeatureFile(path=Path(part.path), kind=record.kind, normalize=record.normalize, strings=part.strings)
        try:
            same = file.part(part.rows, part.digest) == part
        except FileNotFoundError:
            same = False
        if not same:
            raise BadFile(
                "is gone, or not as it was when the index was made of it; make the index anew with --overwrite",
                path=part.path,
            )
        for block in file.blocks():
            for start in range(0, len(block), _ROWS):
                yield block.features[start : start + _ROWS]
