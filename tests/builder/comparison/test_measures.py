"""The figures of a comparison, against the plain way to have them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from cnclip_builder.comparison import distances, retrieval
from cnclip_builder.comparison.distances import measure_distances, quantiles
from cnclip_builder.comparison.plot import draw_distances
from cnclip_builder.comparison.retrieval import compare_retrieval, nearest


def features(rows: int, seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


def plain_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("rows_at_once", [3, 8192])
def test_distances_are_those_of_whole_arrays(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(distances, "_ROWS", rows_at_once)
    a = features(10, 1) + 2
    b = a * np.linspace(0.1, 30, 10, dtype=np.float32)[:, None]  # lengths don't count
    b[4] += 0.5 * features(1, 3)[0]
    b[7] = a[2]  # another item's
    found = measure_distances(a, b, list("abcdefghij"), 2)
    unit_a, unit_b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b)
    )
    mean = unit_a.mean(axis=0)
    assert found.cosine == pytest.approx([plain_distance(x, y) for x, y in zip(unit_a, unit_b, strict=True)], abs=1e-9)
    assert found.centred == pytest.approx(
        [plain_distance(x - mean, y - mean) for x, y in zip(unit_a, unit_b, strict=True)], abs=1e-9
    )
    assert [row.id for row in found.worst] == ["h", "e"]
    assert found.worst[0].centred_distance == found.centred.max() > 0.5 > found.worst[0].cosine_distance
    told = found.as_dict()
    assert told["rows"] == 10
    assert told["cosine_distance"]["worst"] == found.cosine.max()
    assert told["centred_distance"] == quantiles(found.centred)


def test_a_single_row_has_no_mean_to_take_off() -> None:
    found = measure_distances(features(1, 1), features(1, 2), ["one"], 5)
    assert found.centred is None
    assert found.as_dict()["centred_distance"] is None
    assert found.worst[0].centred_distance == found.worst[0].cosine_distance > 0


def test_one_text_given_twice_is_at_its_own_mean() -> None:
    a = np.repeat(features(1, 1), 3, axis=0)
    found = measure_distances(a, a + features(3, 2) / 10, [0, 1, 2], 3)
    assert found.centred is not None
    assert (found.centred.tolist(), bool(np.isfinite(found.cosine).all())) == ([0, 0, 0], True)


@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (7, 4), (9, 50)])
def test_nearest_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, queries: int, gallery: int) -> None:
    monkeypatch.setattr(retrieval, "_QUERIES", 4)
    monkeypatch.setattr(retrieval, "_GALLERY", 13)
    asked, held = features(queries, 1) * 3, features(gallery, 2)
    held *= np.linspace(0.1, 5, gallery, dtype=np.float32)[:, None]
    cosines = asked @ (held / np.linalg.norm(held, axis=1, keepdims=True)).T
    assert nearest(asked, held).tolist() == np.argsort(-cosines, axis=1)[:, :10].tolist()


def test_of_pictures_that_are_there_several_times_the_earlier_is_the_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cn_clip's scripts sort them; what chance puts first would be another recall for each of two models."""
    monkeypatch.setattr(retrieval, "_GALLERY", 70)
    pictures = features(50, 1, 64)
    gallery = np.concatenate([pictures] * 3)
    found = nearest(pictures + features(50, 2, 64) / 2, gallery)
    assert found[:, :3].tolist() == [[row, row + 50, row + 100] for row in range(50)]
    assert nearest(gallery[:1], np.ones((200, 64), np.float32)).tolist() == [list(range(10))]


def test_overlap_and_recall() -> None:
    a = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    b = np.array([[0, 3, 2], [3, 4, 5], [1, 2, 0]])
    found = compare_retrieval(a, b, ["x", "y", "z"], [10, 11, 12, 13, 14, 15], {"x": [10], "y": [13], "z": [99]})
    assert found.overlap == pytest.approx((2 + 0 + 3) / 9)
    assert found.same_first == pytest.approx(1 / 3)
    assert found.recall_a is not None
    assert found.recall_b is not None
    assert (found.recall_a.r1, found.recall_a.r5, found.recall_a.queries) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        3,
    )
    assert (found.recall_b.r1, found.recall_b.r10) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    unknown = compare_retrieval(a, b, ["x", "y", "z"], [10, 11, 12, 13, 14, 15], None)
    assert (unknown.recall_a, unknown.as_dict()["recall"]) == (None, {"a": None, "b": None})


def test_the_plot_keeps_within_its_frame_and_rises() -> None:
    drawn = draw_distances({"plain": np.array([0.0, 1e-7, 3e-4, 2.0]), "centred": np.array([1e-3])})
    curves = re.findall(r'<polyline class="(\w+)" points="([^"]+)"', drawn)
    assert [name for name, _ in curves] == ["plain", "centred"]
    for _, points in curves:
        places = [tuple(map(float, point.split(","))) for point in points.split()]
        assert all(0 <= x <= 640 and 0 <= y <= 220 for x, y in places)
        assert places == sorted(places, key=lambda place: (place[0], -place[1]))
    assert "nan" not in drawn
    assert "http" not in drawn
