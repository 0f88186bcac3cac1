"""What each of two models finds: the ten nearest, how many of them both find, and how often a right one is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cnclip_client.evaluation import Prediction, Recall, recall

from cnclip_builder.comparison.inputs import Id

DEEPEST = 10
"""How many of the nearest are compared."""

_QUERIES, _GALLERY = 512, 16384  # rows at once in memory
_ROUNDING = 1e-5  # far more than float32 products of vectors of length 1 were seen to be off


@dataclass(frozen=True)
class Retrieval:
    """One direction of retrieval, by both models.

    Attributes:
        queries: how many.
        gallery: of how many each looks for its nearest.
        overlap: the share of the nearest ten (or fewer) of one model that are among the other's, over all queries.
        same_first: the share of queries with the same nearest.
        recall_a: of A; None if nothing tells what is right.
        recall_b: of B.
    """

    queries: int
    gallery: int
    overlap: float
    same_first: float
    recall_a: Recall | None
    recall_b: Recall | None

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        shares = {"top10_overlap": self.overlap, "same_first": self.same_first}
        recalls = {"a": self.recall_a, "b": self.recall_b}
        told = {side: None if one is None else asdict(one) for side, one in recalls.items()}
        return {"queries": self.queries, "gallery": self.gallery, **shares, "recall": told}


def nearest(queries: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Finds the rows of a gallery that are nearest by cosine, block by block.

    Of equal cosines the earlier row is the nearer, as for cn_clip's scripts and for `cnclip evaluate`: pictures that
    are there twice are common, and chance must not tell two models apart. BLAS rounds one product differently from
    place to place, so a pair's cosine is summed anew in float64, and rounded to float32.

    Args:
        queries: `[Q, D]`; may be mapped from a file.
        gallery: `[N, D]`, N at least 1; likewise.

    Returns:
        `[Q, min(10, N)]`, the nearest first.
    """
    count = min(DEEPEST, len(gallery))
    found = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), _QUERIES):
        block = _unit(queries[start : start + _QUERIES])
        best = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(block)
        for first in range(0, len(gallery), _GALLERY):
            rows = _unit(gallery[first : first + _GALLERY])
            products = block @ rows.T
            deep = max(0, products.shape[1] - count)
            # Whatever rounding may have put behind the last of them comes along.
            likely = products >= np.partition(products, deep, axis=1)[:, deep, None] - _ROUNDING
            for number, (query, (scores, at)) in enumerate(zip(block, best, strict=True)):
                new = np.flatnonzero(likely[number])
                exact = (rows[new].astype(np.float64) * query).sum(axis=1).astype(np.float32)
                scores, at = np.concatenate([scores, exact]), np.concatenate([at, first + new])
                order = np.argsort(-scores, kind="stable")[:count]
                best[number] = scores[order], at[order]
        found[start : start + len(block)] = [at for _, at in best]
    return found


def compare_retrieval(
    a: npt.NDArray[np.int64],
    b: npt.NDArray[np.int64],
    query_ids: list[Id],
    gallery_ids: list[Id],
    answers: Mapping[Id, Collection[Id]] | None,
) -> Retrieval:
    """Compares what both models found.

    Args:
        a: from `nearest`, by A.
        b: the same by B.
        query_ids: of the queries.
        gallery_ids: of the gallery's rows.
        answers: by query, what is right for it; None if nothing tells. An answer that is not in the gallery, because it
            could not be encoded, is missed by both.
    """
    shared = (a[:, :, None] == b[:, None, :]).any(axis=2) if len(a) * a.shape[1] else np.ones((1, 1), np.bool_)

    def told(found: npt.NDArray[np.int64]) -> Recall | None:
        if not answers:
            return None
        hits = (
            Prediction(query, tuple(gallery_ids[row] for row in rows))
            for query, rows in zip(query_ids, found.tolist(), strict=True)
        )
        return recall(hits, answers, missing="miss")

    first = a[:, 0] == b[:, 0] if a.shape[1] else np.ones(1, np.bool_)
    return Retrieval(len(a), len(gallery_ids), float(shared.mean()), float(first.mean()), told(a), told(b))


def _unit(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    rows = np.asarray(features)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: npt.NDArray[np.float32] = np.nan_to_num(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return unit
