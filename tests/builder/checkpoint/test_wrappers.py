"""Checkpoints as other trainers write them: the same tensors under other keys, prefixes and formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import load_tower
from cnclip_builder.errors import CheckpointError
from safetensors.torch import save_file

StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(tiny_vit: Arch) -> StateDict:
    torch.manual_seed(7)
    state_dict: StateDict = CLIP(**tiny_vit.model_info).state_dict()
    return state_dict


def under(prefix: str, weights: StateDict) -> StateDict:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def compiled_blocks(weights: StateDict) -> StateDict:
    """As `model.visual = torch.compile(model.visual)` names them: the wrapper is in the middle."""
    return {name.replace("visual.", "visual._orig_mod.", 1): value for name, value in weights.items()}


WRAPPERS: dict[str, Callable[[StateDict], Any]] = {
    "a loop's": lambda weights: {"epoch": 2, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
    "the model itself": lambda weights: {"model": weights, "lr": 1e-4},
    "DeepSpeed's": lambda weights: {
        "module": weights, "buffer_names": [], "optimizer": None, "param_shapes": [{"a": torch.Size([2])}], "dp_world_size": 8,
    },
    "DDP under DeepSpeed": lambda weights: {"module": under("module.", weights), "ds_version": "0.14"},
    "compiled": lambda weights: {"state_dict": under("_orig_mod.", weights)},
    "compiled DDP": lambda weights: {"state_dict": under("_orig_mod.module.", weights)},
    "DDP of a compiled one": lambda weights: {"model_state_dict": under("module._orig_mod.", weights)},
    "compiled in parts": lambda weights: {"state_dict": compiled_blocks(weights)},
    "Lightning's": lambda weights: {"state_dict": under("model.", weights), "pytorch-lightning_version": "2.4", "loops": {}},
    "Lightning's, compiled": lambda weights: {"state_dict": under("model._orig_mod.", weights)},
    "of a class around it": lambda weights: {"state_dict": under("encoder.clip.", weights)},
    "holders in holders": lambda weights: {"model": {"state_dict": under("module.", weights)}},
    "with an optimizer's tensors before": lambda weights: {"step": torch.tensor(3), "model": weights},
    "FSDP": lambda weights: under("_fsdp_wrapped_module.", weights),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_other_trainers_wrappers_are_read(tmp_path: Path, tiny_vit: Arch, weights: StateDict, wrapper: str) -> None:
    torch.save(WRAPPERS[wrapper](weights), path := tmp_path / "c.pt")
    loaded = load_checkpoint(path, tiny_vit).state_dict
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.pt"])
def test_safetensors(tmp_path: Path, tiny_vit: Arch, weights: StateDict, name: str) -> None:
    save_file(under("module.", weights), path := tmp_path / name)
    before = path.read_bytes()
    checkpoint = load_checkpoint(path, tiny_vit)
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in weights.items())
    tower = load_tower(checkpoint, "image")  # rounds in place what is mapped from the file
    torch.save({"state_dict": weights}, plain := tmp_path / "plain.pt")
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(tower(image), load_tower(load_checkpoint(plain, tiny_vit), "image")(image))
    assert path.read_bytes() == before


def test_safetensors_missing(
    tmp_path: Path, tiny_vit: Arch, weights: StateDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(weights, path := tmp_path / "c.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(Exception, match=r"safetensors is not installed: pip install 'cn-clip-triton\[builder\]'"):
        load_checkpoint(path, tiny_vit)


def test_what_does_not_fit_names_the_prefix(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    headless = {name: value for name, value in weights.items() if name != "text_projection"}
    torch.save({"state_dict": under("student.clip.", headless)}, path := tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"all its names begin with 'student\.clip\.': save it again without"):
        load_checkpoint(path, tiny_vit)
    torch.save({"state_dict": {**under("clip.", weights), "head.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"such as head\.weight; the prefix 'clip\.' was taken off its names"):
        load_checkpoint(path, tiny_vit)


def test_several_models_are_not_chosen_from(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    both = {**under("online.", weights), **under("target.", weights)}
    torch.save({"state_dict": both}, path := tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"several models, under the prefixes 'online\.', 'target\.'"):
        load_checkpoint(path, tiny_vit)
    torch.save({"state_dict": {**weights, **under("module.", weights)}}, path)
    with pytest.raises(CheckpointError, match=r"holds \S+ twice, one of them as module\."):
        load_checkpoint(path, tiny_vit)


def test_zero_3_leaves_shells(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    torch.save({"module": {name: torch.zeros(0) for name in weights}}, path := tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"ZeRO-3 leaves them: run the zero_to_fp32\.py"):
        load_checkpoint(path, tiny_vit)
