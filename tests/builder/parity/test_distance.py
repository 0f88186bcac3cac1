"""Distances between features, and what passes."""

from __future__ import annotations

import numpy as np
import pytest
from cnclip_builder.errors import ParityError
from cnclip_builder.parity.distance import TOLERANCES, check_parity, measure_parity


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32) + 3


def test_equal(reference: np.ndarray) -> None:
    parity = measure_parity(reference, reference)
    assert (parity.rows, parity.cosine_distance, parity.centred_distance, parity.absolute_difference) == (5, 0, 0, 0)


def test_the_worst_row_counts(reference: np.ndarray) -> None:
    features = reference.copy()
    features[3] += np.linspace(0, 1, 32, dtype=np.float32)
    parity = measure_parity(features, reference)
    cosine = features[3] @ reference[3] / np.linalg.norm(features[3]) / np.linalg.norm(reference[3])
    assert parity.worst_row == 3
    assert parity.cosine_distance == pytest.approx(1 - float(cosine), rel=1e-3)
    assert parity.absolute_difference == pytest.approx(1, abs=1e-6)
    with pytest.raises(ParityError, match="the tower: row 3 of 5 is off by"):
        check_parity("the tower", features, reference, TOLERANCES["fp16"])


def test_a_mix_up_of_nearly_parallel_rows_is_seen(reference: np.ndarray) -> None:
    parallel = reference * 1e-4 + 100
    swapped = parallel[[1, 0, 2, 3, 4]]
    parity = measure_parity(swapped, parallel)
    assert parity.cosine_distance < TOLERANCES["fp32"].cosine_distance
    assert not parity.within(TOLERANCES["fp16"])


def test_one_text_given_twice_has_nothing_to_centre(reference: np.ndarray) -> None:
    same = reference[[2, 2, 2]]
    assert check_parity("the tower", same * np.float32(1 + 1e-7), same, TOLERANCES["fp32"]).centred_distance == 0
    with pytest.raises(ParityError):
        check_parity("the tower", reference[[2, 3, 2]], same, TOLERANCES["fp16"])


def test_nan_does_not_pass(reference: np.ndarray) -> None:
    features = reference.copy()
    features[0, 0] = np.nan
    with pytest.raises(ParityError):
        check_parity("x", features, reference, TOLERANCES["fp16"])


def test_other_shape(reference: np.ndarray) -> None:
    with pytest.raises(ParityError, match=r"shape \[5, 31\] instead of \[5, 32\]"):
        measure_parity(reference[:, :31], reference)
