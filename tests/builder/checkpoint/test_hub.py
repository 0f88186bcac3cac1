"""Downloads from a hub that runs on this machine: what is fetched, gone on with, found again without a network, pinned."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from cnclip_builder.arch import get_arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.checkpoint.sources import fetch_checkpoint
from cnclip_builder.checkpoint.stage import find_arch_of, open_checkpoint
from cnclip_builder.errors import BuildError, CheckpointError, HubError
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.write import RepositoryEntry, add_version

from tests.builder.checkpoint.chinese_clip import TINY, features, inputs, make_model, save_bin
from tests.builder.checkpoint.local_hub import LocalHub, local_hub
from tests.builder.checkpoint.test_adapter import low_rank, write_adapter
from tests.builder.checkpoint.test_hugging_face import our_features, require_equal, sharded

NAME = "someone/tiny-clip"
OFFICIAL = "OFA-Sys/chinese-clip-rn50"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub and an empty cache, which huggingface_hub of this process uses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time
    with local_hub() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            running.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield running


def saved(folder: Path) -> Path:
    make_model(TINY).save_pretrained(folder)
    return folder


def fetch(source: str, tmp_path: Path) -> Path:
    return fetch_checkpoint(source, get_arch("RN50"), tmp_path / "root", "huggingface").path


def fetch_offline(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return fetch(source, tmp_path)


def test_a_model_is_fetched_built_from_and_pinned(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model")
    (folder / "README.md").write_text("a model")
    (folder / "clip_cn_tiny.pt").write_bytes(b"the same in cn_clip's format")
    commit = hub.publish(NAME, folder)
    model = make_model(TINY)
    path = fetch(f"hf:{NAME}", tmp_path)
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]
    require_equal(our_features(path, *inputs(model)), features(model, *inputs(model)))
    facts = open_checkpoint(f"hf:{NAME}", find_arch_of(f"hf:{NAME}", {}, None), tmp_path / "root", "huggingface")
    assert (facts.file.source, facts.file.revision) == (f"hf:{NAME}", commit)
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]  # and not again
    assert find_arch_of(f"hf:{NAME}@{commit}", {}, None).name == "tiny-clip"

    hub.publish(NAME, {**hub.models[NAME, commit], "model.safetensors": b"another training's"})
    assert fetch(f"hf:{NAME}@{commit}", tmp_path) == path
    assert fetch(f"hf:{NAME}", tmp_path) != path
    assert fetch_offline(f"hf:{NAME}@{commit}", tmp_path, monkeypatch) == path


def test_without_a_network(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(NAME, saved(tmp_path / "model"))
    with pytest.raises(
        HubError, match=rf"{NAME} at main is not in .* cache, and HF_HUB_OFFLINE .*`hf download {NAME}`"
    ):
        fetch_offline(f"hf:{NAME}", tmp_path, monkeypatch)
    with pytest.raises(HubError, match=rf"`hf download {NAME} --revision v2`"):
        fetch_offline(f"hf:{NAME}@v2", tmp_path, monkeypatch)
    there = fetch(f"hf:{NAME}", tmp_path)
    asked = len(hub.requests)
    assert fetch_offline(f"hf:{NAME}", tmp_path, monkeypatch) == there
    assert len(hub.requests) == asked
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(HubError, match=rf"could not fetch {NAME} at main .*`hf download {NAME}`\) and give its folder"):
        fetch(f"hf:{NAME}", tmp_path)


def test_branches_and_tags(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = hub.publish(NAME, saved(tmp_path / "model"))
    two = hub.publish(NAME, save_bin(make_model(TINY, seed=8), tmp_path / "other"), branch="refs/pr/1")
    assert fetch(f"hf:{NAME}", tmp_path).name == one
    path = fetch(f"hf:{NAME}@refs/pr/1", tmp_path)
    assert path.name == two
    assert sorted(entry.name for entry in path.iterdir()) == ["config.json", "pytorch_model.bin"]
    assert fetch_offline(f"hf:{NAME}@refs/pr/1", tmp_path, monkeypatch) == path
    with pytest.raises(HubError, match=rf"could not fetch {NAME} at v9 from Hugging Face \(RevisionNotFoundError\)"):
        fetch(f"hf:{NAME}@v9", tmp_path)
    with pytest.raises(
        HubError, match=r"could not fetch nobody/nothing at main .*\(RepositoryNotFoundError\): see that"
    ):
        fetch("hf:nobody/nothing", tmp_path)


def test_shards_a_vocabulary_and_only_those(hub: LocalHub, tmp_path: Path) -> None:
    folder = sharded(make_model(TINY), tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"the same")
    (folder / "vocab.txt").write_bytes(get_arch("RN50").vocabulary_file.read_bytes())
    hub.publish(NAME, folder)
    path = fetch(f"hf:{NAME}", tmp_path)
    expected = {entry.name for entry in folder.iterdir()} - {"pytorch_model.bin"}
    assert {entry.name for entry in path.iterdir()} == expected


def test_a_model_of_cn_clip_alone(hub: LocalHub, tmp_path: Path, resnet_checkpoint: Path) -> None:
    """As OFA-Sys has its RN50, which transformers has no model of."""
    hub.publish(OFFICIAL, {"clip_cn_rn50.pt": resnet_checkpoint.read_bytes(), "README.md": b"x"})
    assert [entry.name for entry in fetch(f"hf:{OFFICIAL}", tmp_path).iterdir()] == ["clip_cn_rn50.pt"]


def test_an_adapter_and_its_base(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(NAME, saved(tmp_path / "model"))
    adapter = low_rank(make_model(TINY), ["visual_projection"])
    hub.publish("someone/lora", write_adapter(tmp_path / "lora", adapter, base_model_name_or_path=NAME))
    path = fetch("hf:someone/lora", tmp_path)
    model = make_model(TINY)
    a, b = adapter.values()
    model.visual_projection.weight.data.add_(2 * b @ a)
    require_equal(our_features(path, *inputs(model)), features(model, *inputs(model)))
    require_equal(our_features(tmp_path / "lora", *inputs(model)), features(model, *inputs(model)))
    assert fetch_offline("hf:someone/lora", tmp_path, monkeypatch) == path


def test_other_families_are_told_before_gigabytes_are_fetched(hub: LocalHub, tmp_path: Path) -> None:
    hub.publish("openai/clip", {"config.json": b'{"model_type": "clip"}', "model.safetensors": bytes(100)})
    with pytest.raises(CheckpointError, match="openai/clip is an OpenAI CLIP model, not a Chinese-CLIP: name one"):
        fetch("hf:openai/clip", tmp_path)
    assert hub.downloads() == ["config.json"]
    hub.publish(NAME, {"README.md": b"", "images.zip": b""})
    with pytest.raises(HubError, match=f"{NAME} has no checkpoint: fetch a file yourself"):
        fetch(f"hf:{NAME}", tmp_path)
    hub.publish(NAME, {"a.pt": b"", "b.pt": b""})
    with pytest.raises(HubError, match=rf"{NAME} has several checkpoints \(a.pt, b.pt\): fetch a file yourself"):
        fetch(f"hf:{NAME}", tmp_path)


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:/b", "hf:a/", "hf:a b/c"])
def test_names_that_are_none(tmp_path: Path, source: str) -> None:
    with pytest.raises(CheckpointError, match=r"names no model: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION"):
        fetch(source, tmp_path)


def test_a_download_that_breaks_off_is_gone_on_with(hub: LocalHub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    hub.publish(NAME, folder)
    hub.cut_at, hub.cuts = 1_000_000, 1
    path = fetch(f"hf:{NAME}", tmp_path)
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    ranges = [asked for method, name, asked in hub.requests if method == "GET" and name.endswith("model.safetensors")]
    assert ranges == [None, "bytes=1000000-"]


def test_exchanged_bytes_are_not_kept(hub: LocalHub, tmp_path: Path) -> None:
    hub.publish(NAME, saved(tmp_path / "model"))
    hub.exchanged = {"model.safetensors"}
    with pytest.raises(HubError, match=r"model\.safetensors arrived from huggingface with .* deleted; fetch it again"):
        fetch(f"hf:{NAME}", tmp_path)
    hub.exchanged = set()
    path = fetch(f"hf:{NAME}", tmp_path)
    assert (path / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()


def test_the_official_checkpoint_and_its_commit(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish(OFFICIAL, {"clip_cn_rn50.pt": b"weights" * 1000})
    file = fetch_checkpoint(None, get_arch("RN50"), tmp_path / "root", "huggingface")
    assert (file.path, file.source, file.revision) == (tmp_path / "root" / "clip_cn_rn50.pt", "official", commit)
    assert file.path.read_bytes() == b"weights" * 1000
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_checkpoint(None, get_arch("RN50"), tmp_path / "root", "huggingface") == file
    assert len(hub.requests) == asked
    file.path.unlink()
    with pytest.raises(HubError, match=r"could not fetch clip_cn_rn50\.pt .*OfflineModeIsEnabled.*put it at"):
        fetch_checkpoint(None, get_arch("RN50"), tmp_path / "root", "huggingface")
    file.path.write_bytes(b"put there by hand")
    (tmp_path / "root" / "clip_cn_rn50.pt.revision").unlink(missing_ok=True)
    assert fetch_checkpoint(None, get_arch("RN50"), tmp_path / "root", "huggingface").revision is None


def test_an_official_download_that_breaks_off_is_gone_on_with(hub: LocalHub, tmp_path: Path) -> None:
    hub.publish(OFFICIAL, {"clip_cn_rn50.pt": bytes(range(256)) * 100})
    hub.cut_at, hub.cuts = 10_000, 1
    file = fetch_checkpoint(None, get_arch("RN50"), tmp_path / "root", "huggingface")
    assert file.path.read_bytes() == bytes(range(256)) * 100
    ranges = [asked for method, _, asked in hub.requests if method == "GET"]
    assert ranges == [None, "bytes=10000-"]


def test_an_official_file_with_another_hash_is_not_kept(hub: LocalHub, tmp_path: Path) -> None:
    hub.publish(OFFICIAL, {"clip_cn_rn50.pt": b"weights"})
    hub.exchanged = {"clip_cn_rn50.pt"}
    with pytest.raises(HubError, match=r"clip_cn_rn50\.pt arrived .* published is .* deleted; fetch it again"):
        fetch_checkpoint(None, get_arch("RN50"), tmp_path, "huggingface")
    assert not list(tmp_path.rglob("*.pt"))


def test_the_manifest_has_the_commit(tiny_artefacts: Artefacts, tmp_path: Path) -> None:
    from dataclasses import replace

    for revision in ("c0ffee", None):
        facts = tiny_artefacts.checkpoint
        pinned = replace(
            tiny_artefacts,
            checkpoint=replace(facts, file=replace(facts.file, source=f"hf:{NAME}", revision=revision)),
        )
        serving = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)
        arch = tiny_artefacts.items[0].arch
        add_version(RepositoryEntry("a", 1, arch, pinned, serving), tmp_path / "repository")
        record = json.loads((tmp_path / "repository" / "manifest.json").read_text())["models"]["a"]["1"]["checkpoint"]
        assert record["source"] == f"hf:{NAME}"
        assert record.get("revision") == revision


def fetch_elsewhere(hub: LocalHub, home: Path, stderr: int, **others: str) -> subprocess.Popen[str]:
    """Fetches the model in a process of its own, which the environment tells where its hub and its cache are."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    code = f"from cnclip_builder.checkpoint.sources import fetch_own; print(fetch_own('hf:{NAME}').path)"
    environment = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **others}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def test_progress_is_shown_on_a_terminal_and_only_there(hub: LocalHub, tmp_path: Path) -> None:
    commit = hub.publish(NAME, saved(tmp_path / "model"))
    with fetch_elsewhere(hub, tmp_path / "a", subprocess.PIPE) as piped:
        stdout, stderr = piped.communicate(timeout=120)
    assert Path(stdout.strip()).name == commit
    assert "%" not in stderr
    shown, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    with fetch_elsewhere(hub, tmp_path / "b", terminal) as process:
        os.close(terminal)
        told = b""
        try:
            while chunk := os.read(shown, 65536):
                told += chunk
        except OSError:  # a terminal that was closed at the other end
            pass
        os.close(shown)
    assert process.returncode == 0
    assert b"model.safetensors" in told
    assert b"100%" in told
    # And found again by another process that has no network, as the environment tells it.
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with fetch_elsewhere(hub, tmp_path / "b", subprocess.PIPE, **offline) as again:
        stdout, _ = again.communicate(timeout=120)
    assert Path(stdout.strip()).name == commit


def test_nothing_but_a_builds_error_goes_through(hub: LocalHub, tmp_path: Path) -> None:
    """Whatever the hub answers."""
    for files in ({"config.json": b"["}, {"config.json": b"[]", "model.safetensors": b""},
                  {"model.safetensors.index.json": b"{}"},
                  {"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'},
                  {"model.safetensors.index.json": b'{"weight_map": {"a": "absent.safetensors"}}'},
                  {"adapter_config.json": b"{}"}):  # fmt: skip
        hub.publish(NAME, files)
        with pytest.raises(BuildError) as caught:
            fetch(f"hf:{NAME}", tmp_path)
        assert "\n" not in str(caught.value)
