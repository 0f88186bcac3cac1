"""Exact search: the same hits whatever the blocks, the earlier of equals first, and none forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import MissingExtra
from cnclip_client._cli import app
from cnclip_client.retrieval import Features, Gallery, search
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

Rng = np.random.Generator


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blocks(features: np.ndarray, rows: int, ids: list[int] | list[str] | None = None) -> Iterator[Features]:
    named = np.array(range(len(features)) if ids is None else ids, dtype=object if ids else np.int64)
    for start in range(0, len(features), rows):
        yield Features(named[start : start + rows], features[start : start + rows])


def found(queries: np.ndarray, gallery: np.ndarray, k: int, rows: int = 1 << 20, **options: int) -> list[tuple]:
    with Gallery(blocks(gallery, rows), **options) as held:
        return [(hits.query, hits.ids, hits.scores.tolist()) for hits in search(blocks(queries, 1 << 20), held, k=k)]


def by_definition(queries: np.ndarray, gallery: np.ndarray, k: int) -> list[tuple]:
    """Every product of exact terms, rounded once; Python's stable sort keeps the order of the file."""
    expected = []
    for query, feature in enumerate(queries.astype(np.float64)):
        scores = (gallery.astype(np.float64) * feature).sum(axis=1).astype(np.float32).tolist()
        best = sorted(range(len(scores)), key=lambda row: -scores[row])[:k]
        expected.append((query, tuple(best), [scores[row] for row in best]))
    return expected


def many_ties(rng: Rng, rows: int, dimension: int) -> np.ndarray:
    """Features of which most are copies of a few, some a rounding error away from them."""
    few = rng.standard_normal((3, dimension)).astype(np.float32)
    features = few[rng.integers(0, 3, rows)]
    nudged = rng.random(rows) < 0.3
    features[nudged, 0] = np.nextafter(features[nudged, 0], np.float32(np.inf))
    return features


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 300),
    queries=st.integers(1, 40),
    dimension=st.integers(1, 70),
    k=st.integers(1, 60),
    block=st.integers(1, 300),
    tied=st.booleans(),
)
def test_it_finds_what_the_definition_says(
    seed: int, rows: int, queries: int, dimension: int, k: int, block: int, tied: bool
) -> None:
    rng = np.random.default_rng(seed)
    make = many_ties if tied else lambda r, n, d: unit(r.standard_normal((n, d)))
    gallery, asked = make(rng, rows, dimension), make(rng, queries, dimension)
    assert found(asked, gallery, k, block) == by_definition(asked, gallery, k)


@pytest.mark.parametrize("rows", [1, 7, 64, 999, 1000, 5000])
def test_of_equal_scores_the_earlier_is_better_across_any_block_border(rows: int) -> None:
    rng = np.random.default_rng(3)
    one = unit(rng.standard_normal((1, 64)))
    gallery = np.repeat(one, 3000, axis=0)
    gallery[1500] = unit(one + np.float32(0.2) * unit(rng.standard_normal((1, 64))))
    queries = np.concatenate([one, gallery[1500:1501], -one])
    assert [ids for _, ids, _ in found(queries, gallery, 12, rows)] == [
        (*range(12),),
        (1500, *range(11)),
        (1500, *range(11)),
    ]


def test_a_gallery_in_a_file_gives_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    gallery, queries = unit(rng.standard_normal((5000, 24))), unit(rng.standard_normal((50, 24)))
    for limit in (0, 24 * 4 * 1000, 24 * 4 * 5000 - 1, 24 * 4 * 5000):
        with Gallery(blocks(gallery, 700), memory_bytes=limit, directory=tmp_path) as held:
            assert held.in_memory == (limit == 24 * 4 * 5000)
            hits = [(one.query, one.ids, one.scores.tolist()) for one in search(blocks(queries, 9), held)]
        assert hits == by_definition(queries, gallery, 10)
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_which_nothing_is_left_are_no_matter() -> None:
    all_of_it = Features(np.arange(4), np.eye(4, dtype=np.float32))
    none = all_of_it[all_of_it.ids > 4]
    with Gallery([none, all_of_it, none]) as gallery:
        assert [hits.ids for hits in search([none, all_of_it, none], gallery, k=1)] == [(0,), (1,), (2,), (3,)]
    with pytest.raises(ValueError, match="there are no features to search"):
        Gallery([none])


def test_ids_come_back_as_they_are() -> None:
    features = np.eye(3, dtype=np.float32)
    with Gallery(blocks(features, 2, ["b", "七", "a"])) as held:
        hits = list(search(blocks(features, 1), held, k=1))
    assert [(one.query, one.ids) for one in hits] == [(0, ("b",)), (1, ("七",)), (2, ("a",))]
    assert [type(one.query) for one in hits] == [int] * 3
    mixed = [Features(np.array([5]), features[:1]), Features(np.array(["5", 2**70], dtype=object), features[1:])]
    with Gallery(mixed) as held:
        assert [one.ids for one in search(blocks(features, 3), held, k=1)] == [(5,), ("5",), (2**70,)]


def test_queries_are_read_only_as_far_as_they_are_answered() -> None:
    read = []

    def endless() -> Iterator[Features]:
        while True:
            read.append(1)
            yield Features(np.arange(512), np.eye(512, 8, dtype=np.float32))

    with Gallery(blocks(np.eye(8, dtype=np.float32), 8)) as held:
        assert next(search(endless(), held)).query == 0
    assert len(read) == 2


@pytest.mark.parametrize("ids", [[1, 2, 1], ["a", "b", "a"], [1, "1", 1]])
def test_an_id_that_comes_twice_is_refused(ids: list) -> None:
    with pytest.raises(ValueError, match=f"the id {ids[0]!r} comes more than once; .*anew"):
        Gallery([Features(np.array(ids, dtype=object), np.eye(3, dtype=np.float32))])


@pytest.mark.parametrize("ids", [[7, 5, 3, 5, 7, 5], ["g", "e", "c", "e", "g", "e"]])
def test_the_command_names_file_and_rows_of_an_id_that_comes_twice(tmp_path: Path, ids: list) -> None:
    features = np.eye(6, dtype=np.float32).tolist()
    lines = [{"image_id": one, "feature": row} for one, row in zip(ids, features, strict=True)]
    (tmp_path / "imgs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "imgs" / "below").mkdir(parents=True)
    for name, part in (("a.parquet", slice(0, 2)), ("below/b.parquet", slice(2, 6))):
        pq.write_table(pa.table({"image_id": ids[part], "feature": features[part]}), tmp_path / "imgs" / name)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text_id": 1, "feature": features[0]}))
    for name, places in (("imgs.jsonl", "rows 2 and 4"), ("imgs", "a.parquet row 2 and below/b.parquet row 2")):
        sides = ["--image-feats", str(tmp_path / name), "--text-feats", str(tmp_path / "texts.jsonl")]
        done = CliRunner().invoke(app, ["search", *sides, "-o", str(tmp_path / "out.jsonl")])
        assert done.exit_code == 2
        assert done.stderr.startswith(
            f"cnclip: {tmp_path / name}: the id {ids[1]!r} comes more than once; in {places}, and in all 3 with"
        )
        assert "with --repeated-ids first" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("beside", ["a folder", "a file"])
def test_the_command_writes_beside_the_work_of_a_job(tmp_path: Path, beside: str) -> None:
    """An unfinished job's `OUT.jsonl.partial/`, or a file of that name, is none of a search's business."""
    work = tmp_path / "out.jsonl.partial"
    if beside == "a folder":
        work.mkdir()
        (work / "job.json").write_text("{}")
    else:
        work.write_text("{}")
    for kind in ("image", "text"):
        (tmp_path / f"{kind}.jsonl").write_text(json.dumps({f"{kind}_id": 1, "feature": [1.0]}))
    sides = ["--image-feats", str(tmp_path / "image.jsonl"), "--text-feats", str(tmp_path / "text.jsonl")]
    done = CliRunner().invoke(app, ["search", *sides, "-o", str(tmp_path / "out.jsonl")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out.jsonl").read_text() == '{"text_id": 1, "image_ids": [1]}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.jsonl", "out.jsonl", work.name, "text.jsonl"]


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="no features to search"):
        Gallery([])
    with pytest.raises(ValueError, match="features of 4 and of 5 numbers; they are of two models"):
        Gallery([*blocks(np.eye(4, dtype=np.float32), 4), Features(np.array([9]), np.ones((1, 5), np.float32))])
    with Gallery(blocks(np.eye(4, dtype=np.float32), 4)) as held:
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            search([], held, k=0)
        with pytest.raises(ValueError, match="queries of 5 numbers, a gallery of 4"):
            list(search(blocks(np.eye(5, dtype=np.float32), 4), held))
        assert list(search([], held)) == []


@pytest.mark.parametrize(
    ("ids", "features", "message"),
    [
        ([1], np.ones((2, 4), np.float32), r"1 ids need features of float32 \[1, D\], got float32 \[2, 4\]"),
        ([1], np.ones((1, 4), np.float64), "got float64"),
        ([1, 2], np.array([[1], [np.nan]], np.float32), "the feature of 2 holds NaN or infinity"),
        ([1, 2], np.array([[-np.inf], [0]], np.float32), "the feature of 1 holds NaN or infinity"),
    ],
)
def test_features_are_what_they_should_be(ids: list[int], features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(np.array(ids), features)


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with Gallery(blocks(np.eye(4, dtype=np.float32), 4)) as held:
        with pytest.raises(MissingExtra, match=r"needs faiss, .*; pip install 'cn-clip-triton\[search\]'"):
            search([], held)


def test_importing_it_is_light() -> None:
    script = "import sys, cnclip_client.retrieval; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"faiss", "pyarrow", "PIL", "jinja2", "typer", "torch"}
