"""Checkpoints of all kinds that users have, and of kinds that they should not have."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import math
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cn_clip.clip.model import CLIP, convert_weights
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import ImageTower, TextTower, load_tower
from cnclip_builder.errors import CheckpointError, MissingRequirementError

StateDict = dict[str, torch.Tensor]


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def prefixed(weights: StateDict) -> StateDict:
    return {f"module.{name}": value for name, value in weights.items()}


def with_flash_attention_names(weights: StateDict) -> StateDict:
    from cn_clip.clip.model import convert_state_dict

    converted: StateDict = convert_state_dict(dict(prefixed(weights)))
    assert any("Wqkv" in name for name in converted)
    return converted


def forms(weights: StateDict) -> dict[str, Any]:
    adam = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    pooler = {"bert.pooler.dense.weight": torch.zeros(2, 2), "bert.pooler.dense.bias": torch.zeros(2)}
    return {
        "pretrained": {"state_dict": prefixed(weights)},
        "without prefixes": {"state_dict": weights},
        "bare": weights,
        "fine-tuned": {"epoch": 3, "step": 10, "name": "x", "state_dict": prefixed(weights), "optimizer": adam},
        "with pooler": {"state_dict": prefixed({**weights, **pooler})},
        "with pooler, without prefixes": {"state_dict": {**weights, **pooler}},
        "FP16": {"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in prefixed(weights).items()}},
        "FlashAttention": {"state_dict": with_flash_attention_names(weights)},
    }


def as_cn_clip_loads(arch: Arch, weights: StateDict) -> CLIP:
    """What cn_clip.clip.load_from_name does on a CPU."""
    model = CLIP(**arch.model_info)
    convert_weights(model)
    model.load_state_dict(weights)
    return model.float().eval()


@pytest.mark.parametrize(
    "form",
    ["pretrained", "without prefixes", "bare", "fine-tuned", "with pooler", "with pooler, without prefixes",
     "FP16", "FlashAttention"],
)  # fmt: skip
def test_every_form_gives_cn_clips_features(tmp_path: Path, tiny_vit: Arch, weights: StateDict, form: str) -> None:
    path = save(tmp_path / "c.pt", forms(weights)[form])
    expected_weights = {k: v.half() if form == "FP16" and v.is_floating_point() else v for k, v in weights.items()}
    reference = as_cn_clip_loads(tiny_vit, expected_weights)
    image, text = torch.rand(2, 3, 32, 32), torch.tensor([[101, 2769, 102, 0], [101, 872, 1962, 102]])
    for tower, inputs, encode in (
        ("image", image, reference.encode_image),
        ("text", text, reference.encode_text),
    ):
        module = load_tower(load_checkpoint(path, tiny_vit), tower)  # type: ignore[arg-type]
        assert isinstance(module, ImageTower if tower == "image" else TextTower)
        with torch.inference_mode():
            assert torch.equal(module(inputs), encode(inputs))


def test_resnet_gives_cn_clips_features(resnet_checkpoint: Path, tiny_resnet: Arch) -> None:
    weights: StateDict = torch.load(resnet_checkpoint, weights_only=True)["state_dict"]
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        ours = load_tower(load_checkpoint(resnet_checkpoint, tiny_resnet), "image")(image)
        assert torch.equal(ours, as_cn_clip_loads(tiny_resnet, weights).encode_image(image))


def test_a_resnet_without_what_batch_norms_count(tmp_path: Path, resnet_checkpoint: Path, tiny_resnet: Arch) -> None:
    weights: StateDict = torch.load(resnet_checkpoint, weights_only=True)["state_dict"]
    kept = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    assert len(kept) < len(weights)
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        ours = load_tower(load_checkpoint(save(tmp_path / "c.pt", {"state_dict": kept}), tiny_resnet), "image")(image)
        assert torch.equal(ours, as_cn_clip_loads(tiny_resnet, kept).encode_image(image))


def test_facts(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    path = save(tmp_path / "c.pt", {"state_dict": {**weights, "logit_scale": torch.tensor(4.6052)}})
    checkpoint = load_checkpoint(path, tiny_vit)
    assert checkpoint.logit_scale == pytest.approx(math.exp(4.6052), rel=1e-6)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_is_left_as_it_is(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    path = save(tmp_path / "c.pt", {"state_dict": weights})
    before = path.read_bytes()
    load_tower(load_checkpoint(path, tiny_vit), "image")
    assert path.read_bytes() == before


def test_legacy_file_format(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    path = tmp_path / "c.pt"
    torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=False)
    assert load_checkpoint(path, tiny_vit).state_dict.keys() == weights.keys()


def test_another_official_arch_is_named(tmp_path: Path) -> None:
    from cnclip_builder.checkpoint.load import make_meta_model

    state_dict = {
        f"module.{name}": torch.zeros(()).expand(value.shape)
        for name, value in make_meta_model(get_arch("RN50")).state_dict().items()
    }
    path = save(tmp_path / "c.pt", {"state_dict": state_dict})
    with pytest.raises(CheckpointError, match=r"is a RN50 checkpoint, not ViT-B-16: use ARCH=RN50"):
        load_checkpoint(path, get_arch("ViT-B-16"))


def test_unknown_arch_says_what_differs(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    changed = {**weights, "text_projection": torch.zeros(32, 47), "extra": torch.zeros(1)}
    del changed["logit_scale"]
    path = save(tmp_path / "c.pt", {"state_dict": changed})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, tiny_vit)
    message = str(caught.value)
    assert "no tiny-vit checkpoint" in message
    assert "1 tensor missing, such as logit_scale" in message
    assert "1 tensor unknown, such as extra" in message
    assert "text_projection: (32, 47), not (32, 48)" in message
    assert message.endswith("leave ARCH out to have it read off the tensors, or describe it in a .json file")


@pytest.mark.parametrize(
    ("state_dict", "family"),
    [
        ({"token_embedding.weight": torch.zeros(2), "visual.conv1.weight": torch.zeros(2)}, "an OpenAI CLIP"),
        ({"vision_model.embeddings.class_embedding": torch.zeros(2)}, "a Hugging Face transformers"),
        ({"bert.embeddings.word_embeddings.weight": torch.zeros(2)}, "a BERT"),
    ],
)
def test_foreign_checkpoints_are_named(tmp_path: Path, tiny_vit: Arch, state_dict: StateDict, family: str) -> None:
    path = save(tmp_path / "c.pt", {"state_dict": state_dict})
    with pytest.raises(CheckpointError, match=rf"is {family}.*use\s+a clip_cn_"):
        load_checkpoint(path, tiny_vit)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_openais_torchscript_archive_is_named(tmp_path: Path, tiny_vit: Arch) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(CheckpointError, match="TorchScript archive, as OpenAI publishes"):
        load_checkpoint(path, tiny_vit)


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._witness),))


@pytest.mark.parametrize("new_format", [True, False])
def test_malicious_pickle_is_not_run(tmp_path: Path, tiny_vit: Arch, weights: StateDict, new_format: bool) -> None:
    witness = tmp_path / "it ran"
    path = tmp_path / "c.pt"
    torch.save({"state_dict": weights, "hook": _Evil(witness)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir.*nothing of it was run"):
        load_checkpoint(path, tiny_vit)
    assert not witness.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated(tmp_path: Path, tiny_vit: Arch, weights: StateDict, share: float) -> None:
    path = save(tmp_path / "c.pt", {"state_dict": weights})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_checkpoint(path, tiny_vit)


def test_an_html_page_instead(tmp_path: Path, tiny_vit: Arch) -> None:
    path = tmp_path / "c.pt"
    path.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_checkpoint(path, tiny_vit)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"epoch": 1}, "no 'state_dict' with tensors; it holds epoch"),
        ([1], "holds a list"),
        (np.zeros(2), "holds a numpy array, not a checkpoint"),
        (
            {"visual.proj": np.zeros(2), "lr": np.float64(1)},
            r"visual.proj \(a numpy array\), lr \(a number of numpy's\)\. ",
        ),
        ({"state_dict": 3}, "not a checkpoint"),
    ],
)
def test_no_state_dict(tmp_path: Path, tiny_vit: Arch, content: Any, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(save(tmp_path / "c.pt", content), tiny_vit)


def test_missing_and_folder(tmp_path: Path, tiny_vit: Arch) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "absent.pt", tiny_vit)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path, tiny_vit)


@pytest.mark.parametrize(
    ("pack", "complaint"),
    [
        (gzip.compress, "is a gzip archive: unpack it"),
        (lzma.compress, "is an xz archive: unpack it"),
        (bz2.compress, "is a bzip2 archive: unpack it"),
    ],
)
def test_archives_are_named(
    tmp_path: Path, tiny_vit: Arch, weights: StateDict, pack: Callable[[bytes], bytes], complaint: str
) -> None:
    torch.save({"state_dict": weights}, path := tmp_path / "c.pt")
    (packed := tmp_path / "c.pt.packed").write_bytes(pack(path.read_bytes()))
    with pytest.raises(CheckpointError, match=complaint):
        load_checkpoint(packed, tiny_vit)
    with tarfile.open(tar := tmp_path / "c.tar", "w") as archive:
        archive.add(path, "c.pt")
    with pytest.raises(CheckpointError, match="is a tar archive: unpack it"):
        load_checkpoint(tar, tiny_vit)


def test_a_pointer_of_git_lfs(tmp_path: Path, tiny_vit: Arch) -> None:
    for name in ("c.pt", "model.safetensors"):
        (path := tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(CheckpointError, match="Git LFS's pointer to a file, and not the file: run git lfs pull"):
            load_checkpoint(path, tiny_vit)


def test_a_file_that_was_packed_anew(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    """PyTorch maps tensors from the file, and would take compressed bytes for numbers; uncompressed ones are right."""
    torch.save({"state_dict": weights}, path := tmp_path / "c.pt")
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(again := tmp_path / "again.pt", "w", how) as packed:
            for name in whole.namelist():
                packed.writestr(name, whole.read(name))
        if how == zipfile.ZIP_STORED:
            loaded = load_checkpoint(again, tiny_vit).state_dict
            assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    with pytest.raises(CheckpointError, match=r"was packed anew, and c/data/\d+ in it is compressed"):
        load_checkpoint(again, tiny_vit)


def test_a_pipe(tmp_path: Path, tiny_vit: Arch) -> None:
    os.mkfifo(path := tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="is no file that can be read twice: copy"):
        load_checkpoint(path, tiny_vit)


@pytest.mark.parametrize(
    ("error", "kind", "complaint"),
    [
        (MemoryError(), MissingRequirementError, r"there is no memory for .*c\.pt .*ulimit -v"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), MissingRequirementError, "no memory for"),
        (
            PermissionError(13, "Permission denied"),
            CheckpointError,
            r"c\.pt can't be read \(Permission denied\): change",
        ),
    ],
)
def test_what_is_not_the_files_fault(
    tmp_path: Path,
    tiny_vit: Arch,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    complaint: str,
) -> None:
    """A fetch would not mend it."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    torch.save({"state_dict": {}}, path := tmp_path / "c.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind, match=complaint) as raised:
        load_checkpoint(path, tiny_vit)
    assert "fetch it again" not in str(raised.value)
