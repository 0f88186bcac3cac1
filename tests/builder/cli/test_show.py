"""`cnclip-build show`: what a repository serves, and whether its files are those that were written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.cli.app import app
from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.manifest import renew_files, update_serving
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.write import RepositoryEntry, add_version
from typer.testing import CliRunner

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)


@pytest.fixture(scope="module")
def built(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one model, and another model of a checkpoint of the hub. Tests that change it change a copy."""
    repository = tmp_path_factory.mktemp("shown") / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    add_version(RepositoryEntry("a", 2, tiny_vit, tiny_artefacts, SERVING), repository)
    file = replace(tiny_artefacts.checkpoint.file, source="hf:someone/tiny", is_random=False, revision="c0ffee")
    fetched = replace(tiny_artefacts, checkpoint=replace(tiny_artefacts.checkpoint, file=file))
    add_version(RepositoryEntry("b", 1, tiny_vit, fetched, replace(SERVING, precision="fp16")), repository)
    return repository


def show(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["show", *arguments])


def test_what_is_served(built: Path) -> None:
    result = show(str(built), "--check")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "a, version 1: tiny-vit, onnxruntime on cpu\n  served by   no ensemble; only by its number\n" in text
    assert "a, version 2: tiny-vit, onnxruntime on cpu\n  served by   a-image, a-text\n" in text
    assert "checkpoint  random:0  (untrained), sha256 " in text
    assert "checkpoint  hf:someone/tiny at c0ffee, sha256 " in text
    assert "image       fp32, 0." in text
    assert "text        fp16, 1." in text
    assert " in process\n" in text


def test_as_json(built: Path, tiny_artefacts: Artefacts) -> None:
    content = json.loads(show(str(built), "--json").stdout)
    assert list(content) == ["models"]
    version = content["models"]["a"]["2"]
    assert version["arch"] == "tiny-vit"
    assert version["checkpoint"]["sha256"] == tiny_artefacts.checkpoint.sha256
    assert version["served_by"] == ["a-image", "a-text"]
    assert version["settings"]["max_batch_size"] == 8
    encoder = version["encoders"]["image"]
    files = (built / "a-image-encoder" / "2").iterdir()
    assert encoder["bytes"] == sum(file.stat().st_size for file in files) > 100_000
    assert encoder["precision"] == "fp32"
    assert 0 <= encoder["parity"]["cosine_distance"] < 1e-6
    assert (encoder["gpus"], encoder["tensorrt"]) == ([], [])
    assert content["models"]["a"]["1"]["served_by"] == []
    assert json.loads(show(str(built), "--json", "--check").stdout)["changed"] == {}


def test_changed_files_are_told_and_tuned_ones_are_not(built: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(built, tmp_path / "copy"))
    tuned = repository / "a-image-encoder" / "config.pbtxt"
    tuned.write_text(tuned.read_text().replace("count: 1", "count: 2"))
    update_serving(repository, "a", {"encoder_instances": {"image": 2}})
    renew_files(repository, [tuned])
    assert show(str(repository), "--check").exit_code == 0
    assert json.loads(show(str(repository), "--json").stdout)["models"]["a"]["2"]["settings"]["encoder_instances"] != 1

    hand_made = repository / "b-text" / "config.pbtxt"
    hand_made.write_text(hand_made.read_text() + "\n")
    (repository / "b-text-tokenize" / "1" / "model.py").unlink()
    (repository / "b-image-encoder" / "1" / "notes.txt").write_text("mine")
    (repository / "b-text-tokenize" / "1" / "__pycache__").mkdir()
    (repository / "b-text-tokenize" / "1" / "__pycache__" / "x.pyc").write_bytes(b"Python's own")
    expected = {
        "b-image-encoder/1/notes.txt": "new",
        "b-text-tokenize/1/model.py": "missing",
        "b-text/config.pbtxt": "changed",
    }
    for options in ((), ("--json",)):
        result = show(str(repository), "--check", *options)
        assert result.exit_code == 1
        assert "3 files are not what" in str(result.exception)
        if options:
            assert json.loads(result.stdout)["changed"] == expected
        else:
            assert all(f"{how:8}  {path}\n" in result.stdout for path, how in expected.items())


def test_what_is_no_repository(built: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = show(str(tmp_path / "empty"))
    assert isinstance(result.exception, RepositoryError)
    assert "has no manifest.json: name the folder that cnclip-build wrote" in str(result.exception)
    repository = Path(shutil.copytree(built, tmp_path / "copy"))
    manifest = json.loads((repository / "manifest.json").read_text())
    (repository / "manifest.json").write_text(json.dumps({key: manifest[key] for key in ("schema", "models")}))
    assert show(str(repository)).exit_code == 0
    assert "has no hashes" in str(show(str(repository), "--check").exception)
    del manifest["models"]["a"]["1"]["checkpoint"]["sha256"]  # which is only shown
    (repository / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json is damaged" in str(show(str(repository)).exception)
    (repository / "a-text" / "config.pbtxt").unlink()
    assert "config.pbtxt is missing: copy the repository again" in str(show(str(repository)).exception)
    del manifest["models"]["a"]["1"]["serving"]
    (repository / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json is damaged" in str(show(str(repository)).exception)
