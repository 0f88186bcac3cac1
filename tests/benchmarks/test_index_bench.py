"""`cnclip-bench index`: features that are made up as it says, and a small run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cnclip_bench._cli import app
from cnclip_bench.index import MadeUp
from typer.testing import CliRunner


def test_features_are_those_that_it_says() -> None:
    made = MadeUp(rows=20_000, size=64, clusters=400)
    images = np.concatenate(list(made.images()))
    assert images.shape == (20_000, 64)
    assert images.dtype == np.float32
    assert np.abs(np.linalg.norm(images, axis=1) - 1).max() < 1e-5
    assert (images == np.concatenate(list(made.images()))).all()
    texts = made.texts(images[:500], seed=0)
    assert np.abs(np.linalg.norm(texts, axis=1) - 1).max() < 1e-5
    assert not np.allclose(texts, made.texts(images[:500], seed=1))
    # The narrow cone of the images, the gap to the texts, and yet each text's own image before most others.
    mean = images.mean(axis=0)
    assert np.linalg.norm(mean) > 0.5
    scores = texts @ images.T
    assert scores.mean() < 0.3
    ranks = (scores > scores[np.arange(500), np.arange(500)][:, None]).sum(axis=1)
    assert np.median(ranks) < 20
    # A spectrum that falls as 1/i: a tenth of the directions hold more than half of the variance.
    variances = np.sort(np.linalg.eigvalsh(np.cov(images.T)))[::-1]
    assert 0.45 < variances[:6].sum() / variances.sum() < 0.75
    # Clusters: nearest neighbours are nearer than in the same cloud without them.
    alone = np.concatenate(list(MadeUp(rows=20_000, size=64, clusters=20_000).images()))
    nearest = [np.sort(rows[:200] @ rows.T, axis=1)[:, -10].mean() for rows in (images, alone)]
    assert nearest[0] > nearest[1] + 0.01


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--rows", "10500", "--size", "16", "--queries", "100", "--memory", "1GiB", "--rounds", "1"]
    done = CliRunner().invoke(app, ["index", *options, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "index.json").read_text())["figures"]["indexes"]
    assert found["factory"] == "HNSW32,SQ8"
    assert min(found["recall"], found["own_recall"]) > 0.9
    assert found["peak_mib"] < 1024
    assert min(found[name] for name in ("minutes", "cpu_minutes", "ms", "exact_ms", "alone_ms", "exact_alone_ms")) > 0
    assert "HNSW32,SQ8" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "index.png"]
