"""Numbers written many at once are what Python writes of each, to the byte: a killed job's file goes on as it began."""

from __future__ import annotations

import numpy as np
import pytest
from cnclip_client._float32 import lists_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays


def written(values: np.ndarray) -> list[bytes]:
    return [b", ".join(b"%.9g" % one for one in row) for row in values.tolist()]


@settings(deadline=None)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.floats(-10, 10, width=32)
        | st.floats(-0.125, 0.125, width=32)
        | st.integers(-99_999, 99_999).map(lambda one: float(np.float32(one / 10_000))),
    )
)
def test_any_number_is_written_as_python_writes_it(values: np.ndarray) -> None:
    assert list(lists_of(values)) == written(values)


def test_so_are_features() -> None:
    features = np.random.default_rng(0).standard_normal((300, 512)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert list(lists_of(features)) == written(features)


@pytest.mark.parametrize("exponent", range(-6, 3))
def test_so_is_what_is_next_to_a_power_of_ten(exponent: int) -> None:
    around = np.full(41, 10.0**exponent, np.float32).view(np.int32) + np.arange(-20, 21, dtype=np.int32)
    values = np.stack([around.view(np.float32), -around.view(np.float32)])
    assert list(lists_of(values)) == written(values)


@pytest.mark.parametrize("places", range(8, 13))
def test_so_is_what_lies_in_the_middle_between_two_numbers_of_nine_digits(places: int) -> None:
    middles = np.arange(1, 2**14, 2) / 2.0 ** (places + 1)  # all with a 5 as their tenth digit, and no more
    values = middles[(middles >= 10.0 ** (8 - places)) & (middles < 10.0 ** (9 - places))].astype(np.float32)
    assert len(values)
    assert list(lists_of(values[None])) == written(values[None])


def test_there_may_be_none() -> None:
    assert list(lists_of(np.empty((0, 4), np.float32))) == []
