"""The best k inner products, exact and always the same, whatever the blocks they are computed in.

BLAS rounds one and the same product differently in matrices of different shapes, so its scores alone would let block
sizes and threads decide between near neighbours, and tell equal features apart. faiss therefore only proposes: what
could be among the best k, given how far float32 can be off, is scored anew in float64, each pair by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnclip_client._extras import require

__all__ = ["Best", "pair_products"]

_SPARE = 32  # proposals past k: more products than that within rounding of the k-th are looked up one by one
_PAIR_BYTES = 32 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Best:
    """The best k rows so far for each of some queries: highest score first, and of equal scores the earlier row.

    Attributes:
        queries: float32 [n, D].
        scores: float32 [n, k], -inf where there are fewer than k rows yet.
        rows: int64 [n, k], -1 there.
    """

    queries: NDArray[np.float32]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]

    @classmethod
    def none(cls, queries: NDArray[np.float32], k: int) -> Best:
        """Returns the best of no rows at all."""
        shape = (len(queries), k)
        return cls(queries, np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64))

    def update(self, block: NDArray[np.float32], first: int) -> None:
        """Takes in the next rows.

        Args:
            block: float32 [m, D], rows `first` to `first + m`; after all that were taken in before.
            first: Number of its first row.
        """
        faiss = require("faiss", extra="search")
        k = self.scores.shape[1]
        width = min(k + _SPARE, len(block))
        # The search of IndexFlatIP, without the index's copy of the block.
        proposed, rows = faiss.knn(self.queries, block, width, metric=faiss.METRIC_INNER_PRODUCT)
        slack = _rounding(self.queries, block)
        floor = self.scores[:, -1]
        if width >= k:
            floor = np.maximum(floor, proposed[:, k - 1] - slack)
        query, column = np.nonzero(proposed >= (floor - slack)[:, None])
        scores = np.full_like(proposed, -np.inf)
        scores[query, column] = pair_products(self.queries, block, query, rows[query, column])
        before = self.scores.copy(), self.rows.copy()
        self._merge(slice(None), scores, np.where(scores > -np.inf, rows + first, -1))
        if width == len(block):
            return
        # Whatever was not proposed scores no higher than the last proposal; where that might still be enough, look.
        for one in np.flatnonzero(proposed[:, -1] >= self.scores[:, -1] - slack).tolist():
            self._look_up(one, block, first, float(self.scores[one, -1] - slack[one]), before)

    def _look_up(
        self,
        query: int,
        block: NDArray[np.float32],
        first: int,
        least: float,
        before: tuple[NDArray[np.float32], NDArray[np.int64]],
    ) -> None:
        """Takes the block in anew for one query, with every row whose float32 product is at least `least`."""
        rows = np.flatnonzero(block @ self.queries[query] >= least)
        scores = pair_products(self.queries, block, np.full_like(rows, query), rows)
        self.scores[query], self.rows[query] = before[0][query], before[1][query]
        self._merge(slice(query, query + 1), scores[None], rows[None] + first)

    def _merge(self, queries: slice, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        k = self.scores.shape[1]
        scores = np.concatenate([self.scores[queries], scores], axis=1)
        rows = np.concatenate([self.rows[queries], rows], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        self.scores[queries] = np.take_along_axis(scores, order, axis=1)
        self.rows[queries] = np.take_along_axis(rows, order, axis=1)


def _rounding(queries: NDArray[np.float32], block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns float32 [n]: how far a float32 product of each query with any row can be from the true one.

    Summed in any order it errs by at most gamma_D |q| |x|, gamma_D being about D/2 times float32's epsilon (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1); taken twice, for the rounding of the
    score itself and of the lengths here.
    """
    longest = np.sqrt(np.einsum("nd,nd->n", block, block).max())
    gamma = (block.shape[1] + 2) * np.finfo(np.float32).eps
    return np.asarray(np.linalg.norm(queries, axis=1) * longest * gamma, dtype=np.float32)


def pair_products(
    queries: NDArray[np.float32], block: NDArray[np.float32], query: NDArray[np.int64], row: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns float32 [pairs], the product of each pair.

    In float64 products of float32 are exact, and numpy sums a pair's in an order that depends on D alone: the
    result is the pair's own.
    """
    scores = np.empty(len(query), dtype=np.float32)
    step = max(1, _PAIR_BYTES // (8 * block.shape[1]))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        products = queries[query[part]].astype(np.float64) * block[row[part]]
        scores[part] = products.sum(axis=1)
    return scores
