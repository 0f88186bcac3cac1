"""A folder where a file's benchmarks run and serve the demo model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cnclip_bench.gpu_report import run


@pytest.fixture(scope="module", autouse=True)
def quick_steps() -> Iterator[None]:
    """Has a GPU report's steps forked from the process that builds' stages are forked from, which has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "START_METHOD", "forkserver")
        yield


@pytest.fixture(scope="module")
def bench_folder(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(demo_artefacts, folder / "build/bench/artefacts/demo")
    return folder


@pytest.fixture
def folder(bench_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one during the test; what tests build there stays for the next."""
    monkeypatch.chdir(bench_folder)
    return bench_folder
