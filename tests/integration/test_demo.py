"""The demo's checkpoint: it retrieves among pictures that it has not seen, and `make demo` says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cnclip_console.table import columns_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.triton
def test_the_demo_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo/demo.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("✓") == 6
    assert "✗" not in result.stdout
    assert max(map(columns_of, result.stdout.splitlines())) <= 80
    assert "Every picture found its own caption" in result.stderr
