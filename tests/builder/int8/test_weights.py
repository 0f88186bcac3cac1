"""INT8 weights: steps that never overflow, rounding that fits the activations, smoothing where channels stick out."""

from __future__ import annotations

import numpy as np
import pytest
from cnclip_builder.int8.weights import WEIGHT_STEPS, Float, fit, round_to_nearest


def activations_like_a_transformers(rows: int, seed: int) -> Float:
    """Correlated and off centre: few directions hold most of what there is."""
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((8, 64)).astype(np.float32)
    offset = rng.standard_normal(64).astype(np.float32)
    mixed = np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32) @ directions
    return mixed + offset + 0.1 * np.random.default_rng(seed + 1).standard_normal((rows, 64)).astype(np.float32)


@pytest.fixture
def weight() -> Float:
    return np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)


def weight_error(activations: Float, weight: Float, values: np.ndarray, scales: Float) -> float:
    return float(np.linalg.norm(activations @ (values * scales - weight)) / np.linalg.norm(activations @ weight))


def test_pairs_of_products_fit_sixteen_bits(weight: Float) -> None:
    for made in (round_to_nearest(weight), fit(weight, activations_like_a_transformers(100, 2))):
        assert made.values.dtype == np.int8
        assert 2 * 255 * np.abs(made.values.astype(int)).max() < 2**15
        assert np.abs(round_to_nearest(weight).values).max() == WEIGHT_STEPS


def test_fitting_helps_on_activations_that_it_has_not_seen(weight: Float) -> None:
    unseen = activations_like_a_transformers(200, 7)
    nearest, fitted = round_to_nearest(weight), fit(weight, activations_like_a_transformers(200, 2))
    assert fitted.smoothing is None
    assert weight_error(unseen, weight, fitted.values, fitted.scales) < 0.5 * weight_error(
        unseen, weight, nearest.values, nearest.scales
    )


def test_channels_that_stick_out_are_smoothed(weight: Float) -> None:
    activations = np.random.default_rng(3).standard_normal((200, 64)).astype(np.float32)
    even = fit(weight, activations)
    activations[:, [5, 40]] *= 100
    weight[[5, 40]] /= 100
    uneven = fit(weight, activations)
    assert even.smoothing is None
    assert uneven.smoothing is not None
    assert set(np.argsort(uneven.smoothing)[-2:]) == {5, 40}
    assert uneven.error < 1.5 * even.error  # not smoothed, rows of this kind lose their small channels: 10 times that


def test_the_error_is_that_of_the_product(weight: Float) -> None:
    activations = activations_like_a_transformers(100, 2)
    made = fit(weight, activations)
    largest = np.abs(activations).max(axis=1, keepdims=True)
    rows = np.rint(activations / largest * 127) / 127 * largest
    exact = activations @ weight
    expected = np.linalg.norm(rows @ (made.values * made.scales) - exact) / np.linalg.norm(exact)
    assert made.error == pytest.approx(expected, rel=1e-3)


def test_weights_and_activations_of_zero(weight: Float) -> None:
    weight[:, 3] = 0
    activations = activations_like_a_transformers(10, 2)
    activations[4] = 0
    made = fit(weight, activations)
    assert not made.values[:, 3].any()
    assert np.isfinite(made.scales).all()
    assert fit(weight, np.zeros_like(activations)).error == 0


def test_the_same_twice(weight: Float) -> None:
    activations = activations_like_a_transformers(100, 2)
    np.testing.assert_array_equal(fit(weight, activations).values, fit(weight, activations).values)
