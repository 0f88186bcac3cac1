"""How far two models' features of the same items are from each other, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnclip_builder.comparison.inputs import Id
from cnclip_builder.parity.distance import centred_distances, cosine_distances

_ROWS = 8192  # at once in memory, of each side

QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "worst": 1.0}
"""By name, which are told."""


@dataclass(frozen=True)
class WorstRow:
    """An item whose features are far apart.

    Attributes:
        id: its id.
        cosine_distance: 1 - cosine.
        centred_distance: the same after the mean of A's rows was taken off both.
    """

    id: Id
    cosine_distance: float
    centred_distance: float


@dataclass(frozen=True)
class Distances:
    """Distances of all rows.

    Attributes:
        cosine: float64 `[N]`, 1 - cosine of each row.
        centred: float64 `[N]`, the same after the mean of A's normalised rows was taken off both: what all features of
            a model have in common makes plain cosines look well. None of a single row.
        worst: the rows that are furthest apart once centred, the furthest first.
    """

    cosine: npt.NDArray[np.float64]
    centred: npt.NDArray[np.float64] | None
    worst: tuple[WorstRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Quantiles and the worst rows, for JSON."""
        return {
            "rows": len(self.cosine),
            "cosine_distance": quantiles(self.cosine),
            "centred_distance": None if self.centred is None else quantiles(self.centred),
            "worst": [vars(row) for row in self.worst],
        }


def quantiles(distances: npt.NDArray[np.float64]) -> dict[str, float]:
    """The quantiles that are told, by name."""
    return {name: float(np.quantile(distances, share)) for name, share in QUANTILES.items()}


def measure_distances(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], ids: list[Id], worst: int) -> Distances:
    """Measures in blocks of rows; features may be mapped from files.

    Args:
        a: `[N, D]`, N at least 1.
        b: `[N, D]`.
        ids: of the rows.
        worst: how many rows to name.
    """
    mean = sum((block.sum(axis=0, dtype=np.float64) for block in _blocks(a)), np.zeros(a.shape[1])) / len(a)
    parts = [
        (cosine_distances(ours, theirs), centred_distances(theirs, ours, mean))
        for ours, theirs in zip(_blocks(a), _blocks(b), strict=True)
    ]
    cosine = np.concatenate([plain for plain, _ in parts])
    centred = np.concatenate([off_mean for _, off_mean in parts]) if len(a) > 1 else None
    told = cosine if centred is None else centred
    furthest = np.argsort(-told, kind="stable")[:worst].tolist()
    rows = (WorstRow(ids[row], float(cosine[row]), float(told[row])) for row in furthest)
    return Distances(cosine, centred, tuple(rows))


def _blocks(features: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float64]]:
    """Rows of length 1: servers give those, files of an encoder others, and their means have to be alike."""
    for start in range(0, len(features), _ROWS):
        block = np.asarray(features[start : start + _ROWS], dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            yield block / np.linalg.norm(block, axis=1, keepdims=True)
