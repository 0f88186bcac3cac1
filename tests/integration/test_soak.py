"""A short soak; `make soak` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.triton
def test_a_short_soak(demo_repository: Path, tmp_path: Path) -> None:
    figures = tmp_path / "soak.json"
    command = [
        *(sys.executable, ROOT / "benchmarks/soak.py", "--minutes", "0.25", "--every-s", "3"),
        *("--repository", demo_repository, "--json", figures),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    seen = json.loads(figures.read_text())
    assert seen["wrong"] == {}
    assert sum(minute["items"] for minute in seen["minutes"]) > 100
