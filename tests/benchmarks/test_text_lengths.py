"""The simulation of padded texts, against what can be reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.loading import load

text_lengths = load("text_lengths")
COSTS = text_lengths.Costs(batch_s=1e-3, token_s=1e-6, text_s=1e-5, pause_s=1e-3, most_rows=16)


def simulate(captions: list[int], lengths: list[int], rows: int, under_way: int, together: bool = True) -> object:
    return text_lengths.simulate(
        np.array(captions), lengths, rows=rows, under_way=under_way, together=together, costs=COSTS, window=1
    )


@pytest.mark.parametrize("rows", [1, 8])
def test_one_request_at_a_time(rows: int) -> None:
    served = simulate([10], [40, 52], rows, 1)
    seconds = COSTS.pause_s + rows * COSTS.text_s + COSTS.batch_s + rows * 40 * COSTS.token_s
    assert served.texts_per_s == pytest.approx(rows / seconds, rel=0.05)
    assert served.rows == rows
    assert served.padding == pytest.approx(0.75)


def test_full_batches_when_all_have_one_shape() -> None:
    served = simulate([10, 20, 30], [52], 1, 400)
    assert served.rows == pytest.approx(COSTS.most_rows, rel=0.05)
    rate = COSTS.most_rows / (COSTS.batch_s + COSTS.most_rows * 52 * COSTS.token_s)
    assert served.texts_per_s == pytest.approx(rate, rel=0.05)


def test_a_text_of_another_shape_ends_a_batch() -> None:
    """Half of the texts have each shape, in random order: runs of one shape are two long on average."""
    served = simulate([10, 50], [10, 50], 1, 400, together=False)
    assert served.rows == pytest.approx(2, rel=0.05)
    assert served.padding == 0


def test_a_length_that_no_text_needs_changes_nothing() -> None:
    assert simulate([9, 30, 39], [40, 52], 2, 8) == simulate([9, 30, 39], [40], 2, 8)
    assert simulate([9], [40], 2, 8, together=False) == simulate([9], [40], 2, 8)


def test_texts_sorted_by_length_share_requests_with_their_like() -> None:
    """Half of the texts are short: sorted in windows of 100 requests, all but one request of a window have one shape."""
    given = {"rows": 4, "under_way": 1, "together": True, "costs": COSTS}
    sorted_texts, mixed = (
        text_lengths.simulate(np.array([10, 50]), [10, 50], window=window, **given) for window in (100, 1)
    )
    assert sorted_texts.padding == pytest.approx(0, abs=0.02)
    assert mixed.padding == pytest.approx(1 - 30 / (50 - 40 / 16), abs=0.02)
