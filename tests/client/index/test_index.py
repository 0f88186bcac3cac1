"""An index finds what it says that it finds, of every format and of ids of every kind, and grows without being made anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cnclip_client import BadFile, JobRefused
from cnclip_client.index import Index, IndexOptions, build_index
from cnclip_client.retrieval import read_features

from tests.client.features import test_feature_files as formats
from tests.client.index.making import asking, best, clustered, in_parts, parquet

ROWS = 1500
KINDS = ["Flat", "HNSW16", "HNSW16,SQ8", "IVF16,Flat", "IVF16,PQ8x4fs", "PCA8,IVF16,SQ8", "IVF16,PQ8x4fs,RFlat"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recall_of(index: Index, queries: np.ndarray, features: np.ndarray) -> float:
    found = [hits.ids for hits in index.search(asking(queries), k=10)]
    return float(
        np.mean(
            [len(set(one) & set(right)) / 10 for one, right in zip(found, best(queries, features, 10), strict=True)]
        )
    )


@pytest.mark.parametrize("factory", KINDS)
def test_its_recall_is_what_it_says(tmp_path: Path, factory: str) -> None:
    features, texts = clustered(ROWS), clustered(2000, seed=1)
    images = parquet(tmp_path / "images.parquet", list(range(ROWS)), features)
    queries = parquet(tmp_path / "texts.parquet", list(range(1000)), texts[:1000], kind="text")
    built = build_index(images, tmp_path / "index", "image", IndexOptions(factory=factory, recall=0.9), queries=queries)
    measured = built.record.measured
    assert (built.added, built.record.rows, built.record.factory) == (ROWS, ROWS, factory)
    assert measured.recall_at_10 >= 0.9
    assert (measured.queries, measured.asked) == (500, "given queries")
    with Index.open(tmp_path / "index") as index:
        assert index.parameters == measured.parameters
        # Of other queries: 1,000 of them are within a few hundredths of 500.
        assert recall_of(index, texts[1000:], features) == pytest.approx(measured.recall_at_10, abs=0.03)
        for hits in index.search(asking(texts[:50]), k=5):
            true = features[list(hits.ids)].astype(np.float64) @ texts[hits.query]
            assert np.abs(hits.scores - true).max() < 1e-3  # float16 at the worst
            assert list(hits.scores) == sorted(hits.scores, reverse=True)


def test_rows_of_its_own_do_not_count_themselves(tmp_path: Path) -> None:
    # Two of everything: each finds the other first, and itself would make up half of a recall of 2.
    features = np.repeat(clustered(200), 2, axis=0)
    file = parquet(tmp_path / "images.parquet", list(range(400)), features)
    record = build_index(file, tmp_path / "index", "image", IndexOptions(factory="IVF8,Flat", recall=0.99)).record
    assert record.measured.asked == "rows of its own"
    check = np.load(tmp_path / "index" / "queries.npz")
    own = check["own"]
    assert len(own) == 400
    assert (check["queries"] == features[own]).all()
    assert {row ^ 1 for row in own.tolist()} == set(own.tolist())
    for row, found in zip(own.tolist(), check["rows"].tolist(), strict=True):
        assert set(found[:2]) == {row, row ^ 1}


@pytest.mark.parametrize("write", [formats.jsonl, formats.npy, formats.parquet, formats.parquet_folder, formats.lists])
def test_every_format_of_features(tmp_path: Path, write: object) -> None:
    features = clustered(30)
    path = write(tmp_path / "features", [f"图{row}" for row in range(30)], features)  # type: ignore[operator]
    build_index(path, tmp_path / "index", "image")
    with Index.open(tmp_path / "index") as index:
        found = [hits.ids[0] for hits in index.search(read_features(path, "image"), k=1)]
    assert found == [f"图{row}" for row in range(30)]


@pytest.mark.parametrize("write", [formats.jsonl, formats.npy, formats.parquet])
def test_links_to_files_whose_names_say_nothing(tmp_path: Path, write: object) -> None:
    write(tmp_path / "features", [1, 2], clustered(2))  # type: ignore[operator]
    links = list(tmp_path.iterdir())
    (tmp_path / "blobs").mkdir()
    for number, link in enumerate(links):
        link.rename(tmp_path / "blobs" / f"{number:040x}")
        link.symlink_to(f"blobs/{number:040x}")
    (path,) = (link for link in links if not link.name.endswith(".ids.jsonl"))
    for added in (2, 0):
        assert build_index(path, tmp_path / "index", "image").added == added


@pytest.mark.parametrize(
    "ids",
    [[5, -3, 2**63 - 1], ["b", "七\n", "a"], [7, "7", 2**70], [1, 2, "three"]],
    ids=["integers", "strings", "mixed", "late"],
)
def test_ids_come_back_as_they_are(tmp_path: Path, ids: list) -> None:
    path = formats.jsonl(tmp_path / "features", ids, np.eye(3, dtype=np.float32))
    build_index(path, tmp_path / "index", "image")
    with Index.open(tmp_path / "index") as index:
        found = [hits.ids for hits in index.search(asking(np.eye(3, dtype=np.float32)), k=1)]
    assert found == [(one,) for one in ids]
    assert [type(one) for (one,) in found] == [type(one) for one in ids]


def test_ids_of_a_folder_of_parts_are_those_that_every_reader_gives(tmp_path: Path) -> None:
    features = clustered(6)
    folder = in_parts(tmp_path / "features", [([1, 2, 3], features[:3]), (["4", "x", "y"], features[3:])])
    build_index(folder, tmp_path / "index", "image")
    expected = [one for block in read_features(folder, "image") for one in block.ids.tolist()]
    with Index.open(tmp_path / "index") as index:
        assert (
            [hits.ids[0] for hits in index.search(asking(features), k=1)] == expected == ["1", "2", "3", "4", "x", "y"]
        )


@pytest.mark.parametrize("factory", ["Flat", "HNSW16,SQ8", "IVF16,PQ8x4fs", "IVF16,Flat"])
def test_later_parts_are_added_without_training_anew(tmp_path: Path, factory: str) -> None:
    features = clustered(3 * ROWS)
    folder = tmp_path / "features"
    parquet(folder / "a.parquet", list(range(ROWS)), features[:ROWS])
    options = IndexOptions(factory=factory, recall=0.9)
    build_index(folder, tmp_path / "index", "image", options)
    before = contents(tmp_path / "index")
    parquet(folder / "b.parquet", list(range(ROWS, 2 * ROWS)), features[ROWS : 2 * ROWS])
    parquet(tmp_path / "c.parquet", [f"n{row}" for row in range(2 * ROWS, 3 * ROWS)], features[2 * ROWS :])
    assert build_index(folder, tmp_path / "index", "image").added == ROWS
    built = build_index([folder, tmp_path / "c.parquet"], tmp_path / "index", "image")
    assert (built.added, built.record.rows, built.record.trained_rows) == (ROWS, 3 * ROWS, ROWS)
    assert [Path(part.path).name for part in built.record.parts] == ["a.parquet", "b.parquet", "c.parquet"]
    assert (json.loads(before["index.json"])["factory"], len(built.record.parts)) == (factory, 3)
    names = [*range(2 * ROWS), *(f"n{row}" for row in range(2 * ROWS, 3 * ROWS))]
    asked = clustered(1000, seed=5)
    with Index.open(tmp_path / "index") as index:
        found = [hits.ids for hits in index.search(asking(asked), k=10)]
    right = [{names[row] for row in rows} for rows in best(asked, features, 10)]
    recall = np.mean([len(set(one) & expected) / 10 for one, expected in zip(found, right, strict=True)])
    assert recall >= 0.87
    # It was measured on all rows, of which the first two thirds were never read again.
    check = np.load(tmp_path / "index" / "queries.npz")
    assert (check["rows"][:, :10] == best(check["queries"], features, 10)).all()
    assert recall == pytest.approx(built.record.measured.recall_at_10, abs=0.04)


def test_an_index_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = formats.jsonl(tmp_path / "features", [1, 2], clustered(2))
    (tmp_path / "index").mkdir()
    monkeypatch.chdir(tmp_path / "index")
    assert build_index(path, ".", "image").added == 2
    monkeypatch.chdir(tmp_path / "index")  # another folder is in its place
    assert build_index(path, ".", "image").added == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["features.jsonl", "index"]


def test_what_is_known_is_not_added_again(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    parquet(folder / "a.parquet", [1, 2], clustered(2))
    parquet(folder / "b.parquet", [3, 4, 5], clustered(3, seed=2))
    build_index(folder, tmp_path / "index", "image")
    before = contents(tmp_path / "index")
    assert build_index(folder, tmp_path / "index", "image").added == 0
    (folder / "a.parquet").touch()
    assert build_index(folder / "a.parquet", tmp_path / "index", "image").added == 0
    shutil.move(folder, tmp_path / "moved")
    assert build_index(tmp_path / "moved", tmp_path / "index", "image").added == 0
    assert contents(tmp_path / "index") == before


def test_what_has_changed_is_refused_and_the_index_stays(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [1, 2], clustered(2))
    build_index(file, tmp_path / "index", "image")
    before = contents(tmp_path / "index")
    for ids, features in (([1, 2], clustered(2, seed=3)), ([1, 3], clustered(2)), ([1, 2, 3], clustered(3))):
        parquet(file, ids, features)
        with pytest.raises(JobRefused, match=r"a\.parquet has changed since it was put into the index; .*--overwrite"):
            build_index(file, tmp_path / "index", "image")
    assert contents(tmp_path / "index") == before
    assert build_index(file, tmp_path / "index", "image", IndexOptions(overwrite=True)).record.rows == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "index"]


@pytest.mark.parametrize("ids", [[7, 5, 3, 5, 7, 5], ["g", "e", "c", "e", "g", "e"], [7, "e", 3, "e", 7, "e"]])
def test_an_id_that_comes_twice_is_named_with_its_files_and_rows(tmp_path: Path, ids: list) -> None:
    features = clustered(6)
    first = formats.jsonl(tmp_path / "a", ids[:2], features[:2])
    second = formats.jsonl(tmp_path / "b", ids[2:], features[2:])
    expected = rf"the id {ids[1]!r} comes more than once, in \S*a.jsonl row 2 and \S*b.jsonl row 2, and in all 3 with"
    with pytest.raises(BadFile, match=expected):
        build_index([first, second], tmp_path / "index", "image")
    assert not (tmp_path / "index").exists()
    build_index(first, tmp_path / "index", "image")
    before = contents(tmp_path / "index")
    with pytest.raises(BadFile, match=expected):
        build_index(second, tmp_path / "index", "image")
    assert contents(tmp_path / "index") == before
    assert not (tmp_path / "index.partial").exists()


def test_fewer_hits_where_clusters_hold_fewer(tmp_path: Path) -> None:
    features = clustered(200)
    file = parquet(tmp_path / "a.parquet", list(range(200)), features)
    build_index(file, tmp_path / "index", "image", IndexOptions(factory="IVF64,Flat"))
    with Index.open(tmp_path / "index") as index:
        index.parameters = "nprobe=1"
        every = list(index.search([asking(features[:9]), asking(features[9:30])], k=50))
        assert list(index.search([])) == []
    assert len(every) == 30
    assert min(len(hits.ids) for hits in every) < 50
    for hits in every:
        assert len(hits.ids) == len(hits.scores) >= 1
        assert np.isfinite(hits.scores).all()
        assert set(hits.ids) <= set(range(200))


def test_more_is_asked_for_than_there_is(tmp_path: Path) -> None:
    for rows in (1, 2, 7):
        file = parquet(tmp_path / "a.parquet", list(range(rows)), clustered(rows))
        record = build_index(file, tmp_path / "index", "image", IndexOptions(overwrite=True)).record
        assert record.measured.recall_at_10 == 1.0
        with Index.open(tmp_path / "index") as index:
            assert [sorted(hits.ids) for hits in index.search(asking(clustered(2)), k=100)] == [list(range(rows))] * 2


def test_features_are_normalised_on_request(tmp_path: Path) -> None:
    features = clustered(50) * np.linspace(1, 400_000, 50, dtype=np.float32)[:, None]
    file = parquet(tmp_path / "a.parquet", list(range(50)), features)
    with pytest.raises(ValueError, match="past 65504, which float16 cannot hold; --normalize, or --no-rescore"):
        build_index(file, tmp_path / "index", "image", IndexOptions(factory="HNSW8,SQ8"))
    options = IndexOptions(factory="HNSW8,SQ8", normalize=True)
    assert build_index(file, tmp_path / "index", "image", options).record.normalize
    with Index.open(tmp_path / "index") as index:
        for hits in index.search(asking(clustered(50)), k=1):
            assert hits.ids == (hits.query,)
            assert hits.scores[0] == pytest.approx(1, abs=2e-3)
    assert build_index(file, tmp_path / "index", "image").added == 0  # as it was made


def test_importing_it_is_light() -> None:
    script = "import sys, cnclip_client.index; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"faiss", "pyarrow", "PIL", "jinja2", "typer", "torch"}
