"""The notebooks, run from their first cell to their last; they are kept without outputs, which would grow old."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO, ROOT

NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["source"]


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """Runs a notebook as Jupyter would, in a copy of what it needs of the repository; returns it, and where."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; pip install --group notebooks")
    nbformat = pytest.importorskip("nbformat")
    (folder / "pyproject.toml").touch()
    shutil.copytree(ROOT / "examples/notebooks", folder / "examples/notebooks")
    shutil.copytree(DEMO, folder / "examples/demo")
    # As `.venv/bin/jupyter lab` leaves it, in a shell that has not activated the environment.
    elsewhere = [one for one in os.environ["PATH"].split(os.pathsep) if not (Path(one) / "cnclip-build").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(elsewhere))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
    path = folder / f"examples/notebooks/{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(path.parent)}})
    client.execute()  # raises, with the cell and what it printed, if one fails
    return notebook, folder


def outputs(notebook: Any) -> str:
    """All that the cells printed and showed, in their order."""
    found: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found.append(output.get("text") or data.get("text/html") or data.get("text/plain", ""))
    return "\n".join(found)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of nbclient's and its friends' own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_first_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook, _ = run("first-search", tmp_path, monkeypatch)
    shown = outputs(notebook)
    found = [
        "three-red-circles-top-left-on-white",
        "one-yellow-star-middle-on-black",
        "four-green-triangles-top-right-on-grey",
    ]
    places = [shown.index(f"</b>: {name}, cosine 0.") for name in found]
    assert places == sorted(places)
    assert "((6, 128), dtype('float32'))" in shown
    assert "array([0, 2])" in shown
    assert "{1: " in shown


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook, folder = run("fine-tuned", tmp_path, monkeypatch)
    shown, work = outputs(notebook), folder / "build/notebooks/fine-tuned"
    recall = json.loads((work / "recall.json").read_text(encoding="utf-8"))
    # What examples/demo/README.md says that the checkpoint reaches on these pictures.
    assert recall["text_to_image"]["r1"] == pytest.approx(95, abs=2)
    assert recall["image_to_text"]["r1"] == pytest.approx(91, abs=2)
    assert "of images" in shown  # the table of `--verify`
    missed = [line for line in shown.splitlines() if ": number " in line or "not among the first 10" in line]
    assert len(missed) == 100 - recall["text_to_image"]["r1"]
    page = (work / "found.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 100
    assert '<iframe srcdoc="' in shown
