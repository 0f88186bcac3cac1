"""From a matrix of weights in FP32 to INT8, chosen so that its product with real activations changes least.

Activations are quantised row by row while the encoder runs: each token's vector is divided by its own largest
magnitude. So a row's features never depend on what else is in its batch, and no activation is ever clipped, whatever
the pictures are. That leaves two things to choose here, both free at run time or nearly so.

Rounding: a weight is not rounded to the nearest step, but so that it makes up for the rounding of the weights before it
(GPTQ, Frantar et al. 2022, arXiv:2210.17323). Smoothing: where single input channels are much larger than the others,
they are divided by a factor, and their weights multiplied by it (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ACTIVATION_STEPS = 127
"""Steps from zero to a row's largest magnitude; kept as uint8 around 128."""

WEIGHT_STEPS = 63
"""Steps from zero to a column's largest weight: 7 bits, not 8. Without VNNI, x86 adds pairs of 8-bit products in 16
bits, which overflow with 8-bit weights (255 x 127 x 2 > 32,767) and not with these. It is so on every machine, because
a repository is often served by another one than built it."""

_DAMPING = 0.1
"""Added to the diagonal of the activations' second moments, as a share of its mean: how little they are trusted. At
0.01, images and texts that were not calibrated on came out no better."""

_BLOCK = 128
_SMOOTHING_GAIN = 0.8
"""Smoothing costs a multiplication of the input: it is taken where it leaves less than this share of the error."""

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Int8Weight:
    """A matrix of weights in INT8.

    Attributes:
        values: int8 `[K, N]`, from -63 to 63.
        scales: float32 `[N]`: what a step of each column is worth.
        smoothing: float32 `[K]`, what the input is divided by first; None for nothing.
        error: the product's root mean square error on the calibration inputs, over the product's own.
    """

    values: npt.NDArray[np.int8]
    scales: Float
    smoothing: Float | None
    error: float


def round_to_nearest(weight: Float) -> Int8Weight:
    """Quantises without calibration: as fast to run as any other rounding, and ready at once.

    Args:
        weight: `[K, N]`.
    """
    scales = _scales(weight)
    return Int8Weight(np.rint(weight / scales).astype(np.int8), scales, None, float("nan"))


def fit(weight: Float, activations: Float) -> Int8Weight:
    """Quantises so that the product with the activations changes least. Deterministic.

    Args:
        weight: `[K, N]`.
        activations: `[rows, K]`.
    """
    smoothing = _smoothing(weight, activations)
    exact = activations @ weight
    plain = _relative_error(activations, weight, exact)
    smoothed = _relative_error(activations / smoothing, weight * smoothing[:, None], exact)
    chosen = smoothing if smoothed < _SMOOTHING_GAIN * plain else None
    if chosen is not None:
        activations, weight = activations / chosen, weight * chosen[:, None]
    scales = _scales(weight)
    values = _round_with_feedback(weight, scales, activations)
    error = _relative(_quantise_rows(activations) @ (values * scales), exact)
    return Int8Weight(values, scales, chosen, error)


def _scales(weight: Float) -> Float:
    largest = np.abs(weight).max(axis=0)
    return np.where(largest > 0, largest / WEIGHT_STEPS, 1).astype(np.float32)


def _smoothing(weight: Float, activations: Float) -> Float:
    """SmoothQuant's factors at its usual strength of one half, with a geometric mean of 1."""
    largest = np.maximum(np.abs(activations).max(axis=0), 1e-5)
    factors = np.sqrt(largest / np.maximum(np.abs(weight).max(axis=1), 1e-5))
    return np.asarray(factors / np.exp(np.log(factors).mean()), dtype=np.float32)


def _round_with_feedback(weight: Float, scales: Float, activations: Float) -> npt.NDArray[np.int8]:
    """GPTQ: rounds input by input, and spreads each error over the weights that are still to be rounded."""
    factor = _inverse_factor(activations)
    rest = weight.copy()
    values = np.empty(weight.shape, dtype=np.int8)
    for start in range(0, len(weight), _BLOCK):
        stop = min(start + _BLOCK, len(weight))
        errors = np.empty((stop - start, weight.shape[1]), dtype=np.float32)
        for row in range(start, stop):
            values[row] = np.clip(np.rint(rest[row] / scales), -WEIGHT_STEPS, WEIGHT_STEPS)
            errors[row - start] = (rest[row] - values[row] * scales) / factor[row, row]
            rest[row + 1 : stop] -= factor[row, row + 1 : stop, None] * errors[row - start]
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return values


def _inverse_factor(activations: Float) -> Float:
    """The upper triangular U with U'U = H^-1, where H are the activations' damped second moments, `[K, K]`."""
    moments = activations.T @ activations
    diagonal = np.diag_indices(len(moments))
    moments[diagonal] += max(_DAMPING * float(moments[diagonal].mean()), 1e-12)
    # A Cholesky factor of H turned about is V with VV' = H, upper triangular; H^-1 itself is never factored.
    upper = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    return np.asarray(np.triu(np.linalg.inv(upper)), dtype=np.float32)


def _quantise_rows(activations: Float) -> Float:
    """What the encoder makes of its activations while it runs."""
    largest = np.maximum(np.abs(activations).max(axis=1, keepdims=True), 1e-30)
    return np.asarray(np.rint(activations / largest * ACTIVATION_STEPS) / ACTIVATION_STEPS * largest, dtype=np.float32)


def _relative_error(activations: Float, weight: Float, exact: Float) -> float:
    """Of rounding to the nearest."""
    nearest = round_to_nearest(weight)
    return _relative(_quantise_rows(activations) @ (nearest.values * nearest.scales), exact)


def _relative(product: Float, exact: Float) -> float:
    return float(np.linalg.norm(product - exact) / max(float(np.linalg.norm(exact)), 1e-30))
