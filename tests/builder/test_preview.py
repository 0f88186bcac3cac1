"""A dry run tells what the build then does, refuses what the build refuses, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.checkpoint.choose import choose_arch
from cnclip_builder.errors import BuildError, CheckpointError, MissingRequirementError
from cnclip_builder.preview import UNKNOWN, Preview, preview_build
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.values import KINDS

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=16)
FILES = [f"tiny-vit.{tower}.{precision}.onnx" for tower in ("img", "txt") for precision in ("fp32", "fp16")]


def request_in(folder: Path, artefacts: Artefacts, arch: Arch) -> BuildRequest:
    return BuildRequest(
        arch=arch,
        checkpoint=str(artefacts.checkpoint.file.path),
        serving=SERVING,
        repository=folder / "repository",
        artefacts=folder / "artefacts",
        download_root=folder / "checkpoints",
        name="a",
    )


@pytest.fixture
def request_(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> BuildRequest:
    """A build of the tiny ViT, whose artefacts are there."""
    made = tiny_artefacts.items[0].folder
    shutil.copytree(made, tmp_path / "artefacts" / "a", ignore=shutil.ignore_patterns("*int8*", ".*"))
    return request_in(tmp_path, tiny_artefacts, tiny_vit)


@pytest.fixture(scope="module")
def made(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one that was made."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_artefacts.items[0].folder, folder / "artefacts" / "a")
    build_repository(request_in(folder, tiny_artefacts, tiny_vit))
    return folder


@pytest.fixture
def built(made: Path, tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> BuildRequest:
    """The same build, made."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return request_in(tmp_path, tiny_artefacts, tiny_vit)


def state_of(folder: Path) -> dict[str, tuple[int, int] | None]:
    """All files that are in a folder, with sizes and times of change, and all folders."""

    def state(path: Path) -> tuple[int, int] | None:
        return None if path.is_dir() else (path.stat().st_mtime_ns, path.stat().st_size)

    return {str(path): state(path) for path in folder.rglob("*")}


def preview(request: BuildRequest, folder: Path) -> Preview:
    before = state_of(folder)
    found = preview_build(request)
    assert state_of(folder) == before
    json.dumps(found.as_dict())
    return found


def configs_of(repository: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text(encoding="utf-8") for path in repository.glob("*/config.pbtxt")}


def test_what_it_tells_is_what_is_built(request_: BuildRequest, tmp_path: Path) -> None:
    first = preview(request_, tmp_path)
    names = [f"a-{kind}" for kind in KINDS]
    assert first.artefacts == dict.fromkeys(FILES, "reused")
    assert first.models == dict.fromkeys(names, "made")
    assert {action for action, _ in first.configs.values()} == {"made"}
    assert first.checkpoint["action"] == "read"
    build_repository(request_)
    assert {name: text for name, (_, text) in first.configs.items()} == configs_of(request_.repository)
    assert load_manifest(request_.repository).models["a"]["1"]["checkpoint"]["sha256"] == first.checkpoint["sha256"]

    again = preview(request_, tmp_path)
    assert {action for action, _ in again.configs.values()} == {"unchanged"}
    encoders = {"a-image-encoder", "a-text-encoder"}
    assert again.models == {name: "reused" if name in encoders else "rewritten" for name in names}

    other = replace(request_, version=2, serving=replace(SERVING, encoder_instances={"text": 2}))
    second = preview(other, tmp_path)
    assert second.models == dict.fromkeys(names, "made")
    assert {action for action, _ in second.configs.values()} == {"rewritten"}
    build_repository(other)
    assert {name: text for name, (_, text) in second.configs.items()} == configs_of(request_.repository)


def test_encoders_alone(built: BuildRequest, tmp_path: Path) -> None:
    alone = replace(built, serving=replace(SERVING, encoders_only=True))
    encoders = {"a-image-encoder", "a-text-encoder"}
    elsewhere = replace(alone, repository=tmp_path / "new")
    assert preview(elsewhere, tmp_path).models == dict.fromkeys(encoders, "made")
    found = preview(alone, tmp_path)
    assert set(found.configs) == encoders
    kinds = {name: "reused" if name in encoders else "deleted" for name in (f"a-{kind}" for kind in KINDS)}
    assert found.models == kinds
    build_repository(alone)
    assert {name: text for name, (_, text) in found.configs.items()} == configs_of(alone.repository)


def test_what_is_lost_or_changed_is_made_again(built: BuildRequest, tmp_path: Path) -> None:
    (built.artefacts / "a" / "tiny-vit.img.fp16.onnx").unlink()
    served = built.repository / "a-text-encoder" / "1" / "model.onnx"
    served.write_bytes(served.read_bytes() + b"!")
    found = preview(built, tmp_path)
    assert [found.artefacts[file] for file in FILES] == ["reused", "made", "reused", "reused"]
    assert (found.models["a-image-encoder"], found.models["a-text-encoder"]) == ("reused", "rewritten")


def test_a_checkpoint_that_is_not_here_is_neither_fetched_nor_made(request_: BuildRequest, tmp_path: Path) -> None:
    found = preview(replace(request_, checkpoint="random:7"), tmp_path)
    assert found.checkpoint == {"source": "random:7", "action": "made"}
    assert found.artefacts == dict.fromkeys(FILES, "made")
    assert f'key: "checkpoint_sha256" value {{ string_value: "{UNKNOWN}" }}' in found.configs["a-text"][1]
    official = preview(replace(request_, arch=get_arch("RN50"), checkpoint=None), tmp_path)
    assert official.checkpoint == {"source": "official", "action": "fetched"}
    assert any("the checkpoint is not here" in note for note in official.notes)


def test_a_hub_is_not_asked(request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    named = replace(request_, checkpoint="hf:someone/model")
    assert preview(named, tmp_path).checkpoint == {"source": "hf:someone/model", "action": "fetched"}
    assert choose_arch("RN50", "hf:someone/model", fetch=False).name == "RN50"
    with pytest.raises(CheckpointError, match="a dry run fetches nothing: name its ARCH"):
        choose_arch(None, "hf:someone/model", fetch=False)


def test_another_checkpoint_in_its_place_is_told(
    built: BuildRequest, tiny_artefacts: Artefacts, tmp_path: Path
) -> None:
    assert not any("another checkpoint" in note for note in preview(built, tmp_path).notes)
    manifest, sha256 = built.repository / "manifest.json", tiny_artefacts.checkpoint.sha256
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(sha256, sha256[::-1]), encoding="utf-8")
    told = f"version 1 is of another checkpoint, sha256 {sha256[::-1][:12]}: it is replaced"
    assert told in preview(built, tmp_path).notes


def test_int8_is_decided_when_it_is_measured(built: BuildRequest, tmp_path: Path) -> None:
    found = preview(replace(built, serving=replace(SERVING, precision="int8")), tmp_path)
    undecided = "decided when measured"
    assert [name for name, action in found.artefacts.items() if action == undecided] == [
        "tiny-vit.img.int8.onnx",
        "tiny-vit.txt.int8.onnx",
    ]
    assert {name for name, action in found.models.items() if action == undecided} == {
        "a-image-encoder",
        "a-text-encoder",
    }
    assert found.configs["a-text"][0] == found.configs["a-image-encoder"][0] == undecided
    assert any(undecided in note for note in found.notes)


def refusals(request: BuildRequest, tmp_path: Path) -> list[BuildRequest]:
    """Builds that are refused, each for another reason."""
    gpu = ServingConfig("gpu", "fp16", 52, 8, "tensorrt")
    (tmp_path / "plans").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "cut.pt").write_bytes(Path(str(request.checkpoint)).read_bytes()[:5000])
    return [
        replace(request, checkpoint=str(tmp_path / "absent.pt")),
        replace(request, checkpoint=str(tmp_path / "cut.pt")),
        replace(request, checkpoint="random:x"),
        replace(request, arch=get_arch("RN50")),
        replace(request, checkpoint=None),
        replace(request, name="../x"),
        replace(request, version=0),
        replace(request, version=2, serving=replace(SERVING, context_length=40)),  # another under the name
        replace(request, serving=replace(SERVING, context_length=600)),
        replace(request, serving=gpu),  # no TensorRT
        replace(request, serving=gpu, plan_folders=(tmp_path / "plans",)),  # no plans in it
        replace(
            request, serving=replace(gpu, platform="onnxruntime", preprocess="gpu"), card_images=tmp_path / "plans"
        ),
        replace(request, repository=tmp_path / "full"),
        replace(request, repository=tmp_path / "file" / "repository"),
        replace(request, repository=tmp_path / "file" / "deep" / "repository"),
        replace(request, repository=Path("/proc/x/y")),
        replace(request, artefacts=Path("/proc/x")),
    ]


def test_what_is_refused_is_refused_in_the_same_words(built: BuildRequest, tmp_path: Path) -> None:
    def refused(build: Any, request: BuildRequest) -> tuple[type[BaseException], str]:
        with pytest.raises(BuildError) as caught:
            build(request)
        return caught.type, str(caught.value)

    for request in refusals(built, tmp_path):
        before = state_of(tmp_path)
        ours = refused(preview_build, request)
        assert state_of(tmp_path) == before, ours
        assert ours == refused(build_repository, request)


def test_a_repository_that_may_only_be_read(built: BuildRequest, ordinary_user: None) -> None:
    """It was replaced; what it had been could not be deleted, and stayed beside it."""
    built.repository.chmod(0o555)
    for build in (preview_build, build_repository):
        with pytest.raises(BuildError, match=r"repository can't be written to \(Permission denied\)"):
            build(built)


def test_a_disk_that_does_not_hold_what_is_served_is_told_before_anything_is_made(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, it ended a build whose artefacts had taken hours."""
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
        for build in (preview_build, build_repository):
            with pytest.raises(
                MissingRequirementError, match="repository needs [0-9,]+ MB of disk for what is served and"
            ):
                build(request_)
    assert not request_.repository.exists()
    for old in request_.artefacts.glob("a/*.json"):
        old.unlink()
    free = preview_build(request_).artefacts  # what is made anew counts with it, on the same disk
    assert set(free.values()) <= {"made", "rewritten"}
    needed = []

    def told(folder: Path, bytes_: int, what: str) -> None:
        needed.append((what, bytes_))

    monkeypatch.setattr("cnclip_builder.build.require_space", told)
    monkeypatch.setattr("cnclip_builder.artefacts.maker.require_space", told)
    preview_build(request_)
    (_, made), (what, both) = needed
    assert what == "what is served and what it is made of"
    assert both > made > 0


def test_a_server_that_is_not_installed_is_missed_before_anything_is_made(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, it ended a build whose artefacts had taken hours."""
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "absent"))
    before = state_of(tmp_path)
    for build in (preview_build, build_repository):
        with pytest.raises(MissingRequirementError, match=r"can't be served here: no tritonserver .*nvidia-pytriton"):
            build(replace(request_, verify=True))
    assert state_of(tmp_path) == before


def test_a_gpu_to_serve_on_is_missed_before_anything_is_made(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnclip_builder.build.require_server", lambda: None)
    monkeypatch.setattr("cnclip_builder.build.current_device", lambda: None)
    monkeypatch.setattr("cnclip_builder.build.why_no_device", lambda: "the driver finds none")
    serving, before = replace(SERVING, target="gpu", accelerator="cuda"), state_of(tmp_path)
    for build in (preview_build, build_repository):
        with pytest.raises(MissingRequirementError, match=r"for a GPU can't be served here \(the driver finds none\)"):
            build(replace(request_, serving=serving, verify=True))
    assert state_of(tmp_path) == before


def test_what_is_served_already_takes_no_room(built: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    build_repository(replace(built, serving=replace(SERVING, max_batch_size=8)))
