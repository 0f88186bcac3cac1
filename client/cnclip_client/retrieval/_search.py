"""Queries in, the best of a gallery for each of them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._extras import require
from cnclip_client._vocabulary import Id
from cnclip_client.features import Features
from cnclip_client.features._features import rebatch
from cnclip_client.retrieval._gallery import Gallery
from cnclip_client.retrieval._topk import Best

__all__ = ["Hits", "search"]

# Few enough to hold, enough that a gallery in a file is read much faster than it is compared.
_QUERIES_IN_FILE, _QUERIES_IN_MEMORY = 8192, 1024


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """What a query found, the best first.

    Attributes:
        query: Its id.
        ids: The ids of the best k of the gallery, or of all if it has fewer.
        scores: float32 [k], the inner products: cosines where features are normalised.
    """

    query: Id
    ids: tuple[Id, ...]
    scores: NDArray[np.float32]


def search(queries: Iterable[Features], gallery: Gallery, *, k: int = 10) -> Iterator[Hits]:
    """Yields the hits of each query, in the queries' order.

    Memory is bounded for any number of queries. A gallery that is in a file is read once for every 8192 of them.

    Args:
        queries: Features, in blocks of any size.
        gallery: What to search.
        k: How many to find for each.

    Raises:
        ValueError: k is less than 1, or the features are of another length than the gallery's.
        MissingExtra: faiss is not installed.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    require("faiss", extra="search")
    return _search(queries, gallery, min(k, len(gallery)))


def _search(queries: Iterable[Features], gallery: Gallery, k: int) -> Iterator[Hits]:
    for block in rebatch(queries, _QUERIES_IN_MEMORY if gallery.in_memory else _QUERIES_IN_FILE):
        size = block.features.shape[1]
        if size != gallery.embedding_size:
            raise ValueError(
                f"queries of {size} numbers, a gallery of {gallery.embedding_size}; they are of two models"
            )
        best = Best.none(np.ascontiguousarray(block.features), k)
        first = 0
        for rows in gallery.blocks():
            best.update(rows, first)
            first += len(rows)
        yield from _hits(block.ids, gallery.ids, best)


def _hits(queries: NDArray[Any], ids: NDArray[Any], best: Best) -> Iterator[Hits]:
    found = ids[best.rows].tolist()
    for query, row, scores in zip(queries.tolist(), found, best.scores, strict=True):
        yield Hits(query, tuple(row), scores)
