"""When a build takes over the encoders that are served already, and when it writes them again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.repository import encoders
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.write import add_version
from cnclip_builder.tensors import TOWERS

from tests.builder.repository.test_sums import real

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=4)


@pytest.fixture
def repository(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> Path:
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The encoders that are written from here on."""
    seen: list[str] = []
    write = encoders._write_encoder

    def noting(new: Path, entry: RepositoryEntry, tower: Any, threads: int) -> Any:
        seen.append(tower)
        return write(new, entry, tower, threads)

    monkeypatch.setattr(encoders, "_write_encoder", noting)
    return seen


def encoder_files(repository: Path) -> dict[str, bytes]:
    files = [path for tower in TOWERS for path in (repository / f"a-{tower}-encoder" / "1").iterdir()]
    return {path.relative_to(repository).as_posix(): path.read_bytes() for path in files}


def test_only_the_settings_change(
    repository: Path, tiny_artefacts: Artefacts, tiny_vit: Arch, written: list[str]
) -> None:
    before, parity = encoder_files(repository), load_manifest(repository).models["a"]["1"]["served_parity"]
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, replace(SERVING, max_batch_size=8)), repository)
    assert written == []
    assert encoder_files(repository) == before
    assert len(before) == 4
    record = load_manifest(repository).models["a"]["1"]
    assert record["served_parity"] == parity
    assert record["serving"]["max_batch_size"] == 8
    assert "max_batch_size: 8" in (repository / "a-image-encoder" / "config.pbtxt").read_text()
    assert load_manifest(repository).files == real(repository)


@pytest.mark.parametrize("tower", TOWERS)
def test_an_encoder_that_was_changed_or_lost_is_written_again(
    repository: Path, tiny_artefacts: Artefacts, tiny_vit: Arch, written: list[str], tower: str
) -> None:
    before = encoder_files(repository)
    model = repository / f"a-{tower}-encoder" / "1" / "model.onnx"
    content = model.read_bytes()
    model.unlink()
    if tower == "text":
        model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    assert written == [tower]
    assert encoder_files(repository) == before
    assert load_manifest(repository).files == real(repository)


def test_another_precision_graph_or_version_is_written(
    repository: Path, tiny_artefacts: Artefacts, tiny_vit: Arch, written: list[str]
) -> None:
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, replace(SERVING, precision="fp16")), repository)
    assert sorted(written) == ["image", "text"]
    written.clear()
    gpu = replace(SERVING, precision="fp16", target="gpu", accelerator="tensorrt")
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, gpu), repository)
    assert written == ["text"]  # with its padding now; the image's graph is the same
    written.clear()
    add_version(RepositoryEntry("a", 2, tiny_vit, tiny_artefacts, gpu), repository)
    assert sorted(written) == ["image", "text"]


@pytest.mark.parametrize("key", ["served_recipe", "versions", "platform", "artefacts", "checkpoint"])
def test_what_was_made_otherwise_is_written_again(
    repository: Path, tiny_artefacts: Artefacts, tiny_vit: Arch, written: list[str], key: str
) -> None:
    path = repository / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    record = manifest["models"]["a"]["1"]
    if key == "served_recipe":
        record[key] -= 1
    elif key == "versions":
        record[key]["onnx"] = "1.0"
    elif key == "platform":
        record[key] = "tensorrt"
    elif key == "checkpoint":
        record[key]["sha256"] = "0" * 64
    else:
        for artefact in record[key].values():
            for file in artefact["files"].values():
                file["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest), encoding="utf-8")
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    assert sorted(written) == ["image", "text"]
