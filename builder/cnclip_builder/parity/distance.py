"""How far an artefact's features are from PyTorch's, row by row, and how far they may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnclip_builder.errors import ParityError
from cnclip_builder.tensors import Precision


@dataclass(frozen=True)
class Tolerance:
    """The largest distances of a row that pass.

    Attributes:
        cosine_distance: 1 - cosine between the row and its reference.
        centred_distance: the same after the mean of the reference rows was taken off both. Untrained weights give
            nearly parallel features, whose plain cosines would hide a mix-up of rows; a mix-up gives about 1 here.
    """

    cosine_distance: float
    centred_distance: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(cosine_distance=1e-6, centred_distance=1e-5),
    # The official architectures were seen at 2e-4 at most after centring.
    "fp16": Tolerance(cosine_distance=1e-3, centred_distance=5e-3),
    # Strict after centring, since that is what ranks: noise of this size, put on the demo checkpoint's features, cost
    # less than one point of R@1 (docs/int8.md).
    "int8": Tolerance(cosine_distance=1e-2, centred_distance=2e-2),
}


# Nearer to the mean, by a row's length, than float32 can tell two rows apart: there is nothing to centre.
_AT_MEAN = 6e-8


@dataclass(frozen=True)
class Parity:
    """Measured distances between features and their reference; each is the worst row's.

    Attributes:
        rows: how many rows were compared.
        cosine_distance: largest 1 - cosine.
        centred_distance: largest 1 - cosine after centring; 0 where there is nothing to centre, as of a single row, or
            of one text that was given twice.
        absolute_difference: largest absolute difference of a component.
        worst_row: the row of the largest cosine distance.
    """

    rows: int
    cosine_distance: float
    centred_distance: float
    absolute_difference: float
    worst_row: int

    def as_dict(self) -> dict[str, Any]:
        """The figures for a manifest."""
        return asdict(self)

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every row passes. False for NaN."""
        return self.cosine_distance <= tolerance.cosine_distance and self.centred_distance <= tolerance.centred_distance


def measure_parity(features: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> Parity:
    """Compares features with their reference.

    Args:
        features: `[N, D]`.
        reference: `[N, D]`, N at least 1.

    Raises:
        ParityError: the shapes differ.
    """
    if features.shape != reference.shape:
        raise ParityError(f"features of shape {list(features.shape)} instead of {list(reference.shape)}")
    ours, theirs = features.astype(np.float64), reference.astype(np.float64)
    mean = theirs.mean(axis=0)
    distances = cosine_distances(ours, theirs)
    centred = centred_distances(ours, theirs, mean)
    return Parity(
        rows=len(theirs),
        cosine_distance=float(np.max(distances)),
        centred_distance=float(np.max(centred)),
        absolute_difference=float(np.max(np.abs(ours - theirs))),
        worst_row=int(np.argmax(distances)),
    )


def check_parity(
    what: str, features: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], tolerance: Tolerance
) -> Parity:
    """Measures, and refuses features that are too far off.

    Args:
        what: names the features in the error.
        features: `[N, D]`.
        reference: `[N, D]`.
        tolerance: what passes.

    Raises:
        ParityError: a row is beyond the tolerance, or the shapes differ.
    """
    parity = measure_parity(features, reference)
    if not parity.within(tolerance):
        raise ParityError(
            f"{what}: row {parity.worst_row} of {parity.rows} is off by 1 - cosine = {parity.cosine_distance:.2e} "
            f"(at most {tolerance.cosine_distance:.0e} passes), {parity.centred_distance:.2e} after centring (at most "
            f"{tolerance.centred_distance:.0e}), and at most {parity.absolute_difference:.2e} in a component"
        )
    return parity


def cosine_distances(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Measures 1 - cosine of each row, `[N]`, of `[N, D]` both; NaN where a row is zero."""
    # From the difference of the unit vectors: 1 - a.b would lose all digits below 1e-16 and gain false ones.
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = a / np.linalg.norm(a, axis=1, keepdims=True) - b / np.linalg.norm(b, axis=1, keepdims=True)
    distances: npt.NDArray[np.float64] = np.sum(difference * difference, axis=1) / 2
    return distances


def centred_distances(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Measures 1 - cosine of each row, `[N]`, of `[N, D]` both, after a mean was taken off; 0 where b's row is that."""
    at_mean = np.linalg.norm(b - mean, axis=1) <= _AT_MEAN * np.linalg.norm(b, axis=1)
    return np.where(at_mean, 0.0, cosine_distances(a - mean, b - mean))
