"""The demo's checkpoint: it retrieves among pictures that it has not seen, and `make demo` says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cnclip_console.table import columns_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both run: with the encoders that other tests export, the second with the first's repository too."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(demo_artefacts, folder / "build/demo/artefacts/demo")
    return folder


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs one of the demo's scripts, and sees that it ended well."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo" / script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.triton
def test_the_demo_runs(folder: Path) -> None:
    result = run("demo.py", folder)
    assert result.stdout.count("✓") == 6
    assert "✗" not in result.stdout
    assert max(map(columns_of, result.stdout.splitlines())) <= 80
    assert "Every picture found its own caption" in result.stderr


@pytest.mark.slow
@pytest.mark.triton
def test_the_page_of_the_readme_can_be_made_again(folder: Path) -> None:
    pytest.importorskip("faiss")
    result = run("page.py", folder)
    page = (folder / result.stdout.strip()).read_text(encoding="utf-8")
    assert "The first 8 of 100 images<" in page
    assert "the first answer is right for <strong>95</strong>" in page
    assert page.count("data:image/") >= 100
