"""Near duplicates are those that comparing everything with everything finds, the earlier one kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cnclip_client import BadFile
from cnclip_client._cli import app
from cnclip_client.index import Index, IndexOptions, build_index, near_duplicates
from typer.testing import CliRunner

from tests.client.index.making import SHA, clustered, parquet


def with_duplicates(rows: int) -> np.ndarray:
    """Of about every third item another one a little off, in any order."""
    rng = np.random.default_rng(0)
    features = clustered(rows)
    copies = rng.integers(0, rows, rows // 3)
    near = features[copies] + 0.02 * rng.standard_normal((len(copies), features.shape[1]))
    every = np.concatenate([features, near])[rng.permutation(rows + len(copies))]
    return (every / np.linalg.norm(every, axis=1, keepdims=True)).astype(np.float32)


def by_definition(features: np.ndarray, cosine: float) -> dict[int, list[int]]:
    scores = features.astype(np.float64) @ features.astype(np.float64).T
    kept: list[int] = []
    groups: dict[int, list[int]] = {}
    for row in range(len(features)):
        near = [other for other in kept if scores[row, other] >= cosine]
        if near:
            groups.setdefault(max(near, key=lambda other: scores[row, other]), []).append(row)
        else:
            kept.append(row)
    return groups


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_they_are_those_of_all_pairs(tmp_path: Path, factory: str) -> None:
    features = with_duplicates(900)
    half = len(features) // 2
    parquet(tmp_path / "features" / "a.parquet", list(range(half)), features[:half])
    parquet(tmp_path / "features" / "b.parquet", list(range(half, len(features))), features[half:])
    build_index(tmp_path / "features", tmp_path / "index", "image", IndexOptions(factory=factory))
    stages: list[tuple[str, int, int]] = []
    with Index.open(tmp_path / "index") as index:
        index.parameters = {"Flat": "", "HNSW16": "efSearch=500", "IVF8,Flat": "nprobe=8"}[factory]
        groups = list(near_duplicates(index, 0.99, lambda *one: stages.append(one)))
    expected = by_definition(features, 0.99)
    assert 200 < sum(map(len, expected.values())) < 400
    assert {group.kept: list(group.dropped) for group in groups} == expected
    assert [group.kept for group in groups] == sorted(expected)
    for group in groups:
        assert group.cosines.tolist() == pytest.approx(
            (features[list(group.dropped)] @ features[group.kept]).tolist(), abs=1e-5
        )
    assert stages[-1] == ("comparing", len(features), len(features))


def test_more_copies_than_neighbours(tmp_path: Path) -> None:
    features = np.repeat(np.eye(3, 8, dtype=np.float32), 300, axis=0)
    build_index(parquet(tmp_path / "a.parquet", list(range(900)), features), tmp_path / "index", "image")
    with Index.open(tmp_path / "index") as index:
        groups = list(near_duplicates(index, 0.9))
    assert sum(len(group.dropped) for group in groups) == 897
    assert sorted(group.kept // 300 for group in groups) == [0, 1, 2]


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_more_that_are_near_than_neighbours(tmp_path: Path, factory: str) -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(3, 16), 400, axis=0) + 0.02 * rng.standard_normal((1200, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    options = IndexOptions(factory=factory)
    build_index(parquet(tmp_path / "a.parquet", list(range(1200)), features), tmp_path / "index", "image", options)
    with Index.open(tmp_path / "index") as index:
        index.parameters = {"Flat": "", "HNSW16": "efSearch=500", "IVF8,Flat": "nprobe=8"}[factory]
        groups = list(near_duplicates(index, 0.95))
    assert [(group.kept, len(group.dropped)) for group in groups] == [(0, 399), (400, 399), (800, 399)]


def test_the_command(tmp_path: Path) -> None:
    features = np.eye(4, 8, dtype=np.float32)[[0, 1, 0, 2, 1, 0]]
    file = parquet(tmp_path / "a.parquet", ["a", "b", "c", "d", "e", "f"], features, sha=SHA)
    build_index(file, tmp_path / "index", "image")
    command = ["dedup", str(tmp_path / "index"), "--cosine", "0.9", "-o", str(tmp_path / "found.jsonl")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()] == [
        {"kept": "a", "dropped": ["c", "f"], "cosines": [1.0, 1.0]},
        {"kept": "b", "dropped": ["e"], "cosines": [1.0]},
    ]
    assert done.stderr == "cnclip: 3 of 6 items as near as 0.9 to an earlier one, in 2 groups; 3 kept\n"
    parquet(file, ["a", "b", "c", "d", "e", "f"], features[::-1].copy())
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "a.parquet: is gone, or not as it was when the index was made of it; make the index anew" in done.stderr


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [1, 2, 3], clustered(3))
    build_index(file, tmp_path / "index", "image")
    with Index.open(tmp_path / "index") as index:
        for cosine in (1.5, -2.0, float("nan")):
            with pytest.raises(ValueError, match="a cosine is between -1 and 1"):
                near_duplicates(index, cosine)
        assert [group.kept for group in near_duplicates(index, -1.0)] == [1]
        file.unlink()
        with pytest.raises(BadFile, match="is gone, or not as it was"):
            list(near_duplicates(index, 0.9))
