"""Where checkpoints come from."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.sources import fetch_checkpoint
from cnclip_builder.errors import CheckpointError, HubError, MissingRequirementError


def test_random_is_the_same_each_time(tmp_path: Path, tiny_vit: Arch) -> None:
    first = fetch_checkpoint("random:3", tiny_vit, tmp_path / "a", "huggingface")
    second = fetch_checkpoint("random:3", tiny_vit, tmp_path / "b", "huggingface")
    other = fetch_checkpoint("random:4", tiny_vit, tmp_path / "b", "huggingface")
    assert first.is_random
    assert first.source == "random:3"
    one, two, three = (load_checkpoint(file.path, tiny_vit).state_dict for file in (first, second, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["text_projection"], three["text_projection"])


def test_the_home_of_a_user_that_is_not_there(tiny_vit: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at ~nobody-here.pt"):
        fetch_checkpoint("~nobody-here.pt", tiny_vit, tmp_path, "huggingface")
    Path("~nobody-here.pt").touch()
    assert fetch_checkpoint("~nobody-here.pt", tiny_vit, tmp_path, "huggingface").path == Path("~nobody-here.pt")


def test_random_on_a_full_disk(tmp_path: Path, tiny_vit: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer raises a RuntimeError of its own numbers, and keeps to itself what the disk said."""

    def full(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0")

    monkeypatch.setattr("torch.save", full)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(MissingRequirementError, match="no space left on the disk while writing .*tiny-vit.random-3.pt"):
        fetch_checkpoint("random:3", tiny_vit, tmp_path, "huggingface")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["random:", "random:x", "random:-1", "random:9999999999"])
def test_bad_seed(tmp_path: Path, tiny_vit: Arch, source: str) -> None:
    with pytest.raises(CheckpointError, match="after 'random:' comes a seed"):
        fetch_checkpoint(source, tiny_vit, tmp_path, "huggingface")


def test_missing_path(tmp_path: Path, tiny_vit: Arch) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent\.pt"):
        fetch_checkpoint(str(tmp_path / "absent.pt"), tiny_vit, tmp_path, "huggingface")


def test_a_folder_is_told_for_one(tmp_path: Path, tiny_vit: Arch) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder: give the path of the \.pt or \.safetensors file in it"):
        fetch_checkpoint(str(tmp_path), tiny_vit, tmp_path, "huggingface")


def test_a_name_that_is_no_utf_8(tmp_path: Path, tiny_vit: Arch) -> None:
    path = tmp_path / os.fsdecode("检查点.pt".encode("gb18030"))
    path.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"\.pt: torch opens only files whose names are UTF-8: rename it"):
        fetch_checkpoint(str(path), tiny_vit, tmp_path, "huggingface")


def test_no_official_one(tmp_path: Path, tiny_vit: Arch) -> None:
    with pytest.raises(CheckpointError, match="has no official checkpoint"):
        fetch_checkpoint(None, tiny_vit, tmp_path, "huggingface")


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(HubError) as caught:
        fetch_checkpoint(None, get_arch("ViT-B-16"), tmp_path, "huggingface")
    message = str(caught.value)
    assert "clip_cn_vit-b-16.pt of OFA-Sys/chinese-clip-vit-base-patch16" in message
    assert "https://huggingface.co/OFA-Sys/chinese-clip-vit-base-patch16/resolve/main/clip_cn_vit-b-16.pt" in message
    assert f"put it at {tmp_path / 'clip_cn_vit-b-16.pt'}" in message


def hugging_face(monkeypatch: pytest.MonkeyPatch, published: str | None) -> None:
    """A hub that has `weights`, and says that their SHA-256 is the given one."""

    def download(repository: str, filename: str, revision: str, local_dir: Path) -> None:
        assert (repository, revision) == ("OFA-Sys/chinese-clip-rn50", "c0ffee")
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / filename).write_bytes(b"weights")

    def facts(url: str) -> SimpleNamespace:
        assert url.endswith("/OFA-Sys/chinese-clip-rn50/resolve/main/clip_cn_rn50.pt")
        return SimpleNamespace(commit_hash="c0ffee", etag=published or "of-a-small-file")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", facts)


@pytest.mark.parametrize("published", [None, hashlib.sha256(b"weights").hexdigest()])
def test_hugging_face_is_asked_for_the_right_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: str | None
) -> None:
    hugging_face(monkeypatch, published)
    file = fetch_checkpoint(None, get_arch("RN50"), tmp_path / "new", "huggingface")
    assert (file.path, file.source, file.is_random) == (tmp_path / "new" / "clip_cn_rn50.pt", "official", False)
    assert file.revision == "c0ffee"
    assert file.path.read_bytes() == b"weights"


def test_a_file_with_another_hash_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hugging_face(monkeypatch, hashlib.sha256(b"others").hexdigest())
    with pytest.raises(HubError, match=r"clip_cn_rn50\.pt arrived .* published is .* deleted; fetch it again"):
        fetch_checkpoint(None, get_arch("RN50"), tmp_path, "huggingface")
    assert not list(tmp_path.rglob("*.pt"))


def test_an_official_file_that_is_there_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "clip_cn_rn50.pt").write_bytes(b"weights")
    assert fetch_checkpoint(None, get_arch("RN50"), tmp_path, "modelscope").path == tmp_path / "clip_cn_rn50.pt"


def test_modelscope_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "modelscope.hub.file_download", None)
    with pytest.raises(MissingRequirementError, match=r"cn-clip-triton\[modelscope\]"):
        fetch_checkpoint(None, get_arch("RN50"), tmp_path, "modelscope")
