"""A folder where benchmarks run and build the demo model once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def folder(bench_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one during the test; what tests build there stays for the next."""
    monkeypatch.chdir(bench_folder)
    return bench_folder
