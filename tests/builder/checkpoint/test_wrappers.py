"""Checkpoints as other trainers write them: the same tensors under other keys, prefixes and formats."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cn_clip.clip.model import convert_state_dict
from cn_clip.training.scheduler import cosine_lr
from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.stage import open_checkpoint
from cnclip_builder.checkpoint.towers import load_tower
from cnclip_builder.errors import CheckpointError
from cnclip_builder.tensors import TOWERS
from safetensors.torch import save_file

StateDict = dict[str, torch.Tensor]


def under(prefix: str, weights: StateDict) -> StateDict:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def compiled_blocks(weights: StateDict) -> StateDict:
    """As `model.visual = torch.compile(model.visual)` names them: the wrapper is in the middle."""
    return {name.replace("visual.", "visual._orig_mod.", 1): value for name, value in weights.items()}


def scheduled_optimizer() -> dict[str, Any]:
    """What cn_clip's trainer saves of it once the warm-up is over: the learning rate is numpy's."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    cosine_lr(optimizer, 1e-3, 1, 10)(2)
    assert isinstance(optimizer.param_groups[0]["lr"], np.float64)
    return optimizer.state_dict()


WRAPPERS: dict[str, Callable[[StateDict], Any]] = {
    "cn_clip's trainer's": lambda weights: {
        "epoch": 1, "step": 2, "name": "x", "state_dict": under("module.", weights), "optimizer": scheduled_optimizer(),
    },
    "with its arguments and random state": lambda weights: {
        "model": weights, "args": Namespace(lr=np.float32(0.1), output=Path("here")), "rng": np.random.get_state(), "torch": torch.__version__,
    },
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
    "an average alone": lambda weights: {"ema_state_dict": weights, "optimizer": scheduled_optimizer()},
    "under a name of its own": lambda weights: {"epoch": 1, "nets": {"clip": under("module.", weights)}},
    "torch's AveragedModel": lambda weights: {"model": {"n_averaged": torch.tensor(5), **under("module.", weights)}},
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
    torch.save({"student": weights, "teacher": weights}, path)
    with pytest.raises(CheckpointError, match=r"several models, student, teacher: save one of them alone"):
        load_checkpoint(path, tiny_vit)
    headless = {name: value for name, value in weights.items() if name != "text_projection"}
    torch.save({"state_dict": headless, "ema": weights}, path)
    with pytest.raises(CheckpointError, match="1 tensor missing, such as text_projection"):
        load_checkpoint(path, tiny_vit)
    torch.save({"state_dict": {**weights, **under("module.", weights)}}, path)
    with pytest.raises(CheckpointError, match=r"holds \S+ twice, one of them as module\."):
        load_checkpoint(path, tiny_vit)


def test_zero_3_leaves_shells(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    torch.save({"module": {name: torch.zeros(0) for name in weights}}, path := tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"ZeRO-3 leaves them: run the zero_to_fp32\.py"):
        load_checkpoint(path, tiny_vit)


def parameters(weights: StateDict) -> StateDict:
    """As `dict(model.named_parameters())` has them: leaves of a graph, which can't be written to in place."""
    return {name: torch.nn.Parameter(value) for name, value in weights.items()}


def one_storage(weights: StateDict) -> StateDict:
    """As FSDP flattens them: views of one storage, which begins with something else."""
    whole = torch.cat([torch.zeros(7), *(value.flatten() for value in weights.values())])
    sizes = [7, *(value.numel() for value in weights.values())]
    pieces = whole.split(sizes)[1:]
    return {name: piece.view_as(value) for piece, (name, value) in zip(pieces, weights.items(), strict=True)}


FORMS: dict[str, Callable[[StateDict], StateDict]] = {
    "parameters": parameters,
    "views of one storage": one_storage,
    "transposed in memory": lambda weights: {
        name: value.t().contiguous().t() if value.dim() == 2 else value for name, value in weights.items()
    },
    "a scale of one axis": lambda weights: {**weights, "logit_scale": weights["logit_scale"].reshape(1)},
    "float64": lambda weights: {name: value.double() for name, value in weights.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_in_other_forms(tmp_path: Path, tiny_vit: Arch, weights: StateDict, form: str) -> None:
    torch.save({"state_dict": FORMS[form](weights)}, path := tmp_path / "c.pt")
    checkpoint = load_checkpoint(path, tiny_vit)
    torch.save({"state_dict": weights}, plain := tmp_path / "plain.pt")
    expected = load_checkpoint(plain, tiny_vit)
    assert checkpoint.logit_scale == expected.logit_scale
    for tower in TOWERS:
        found = load_tower(checkpoint, tower).state_dict()
        for name, value in load_tower(expected, tower).state_dict().items():
            assert value.is_meta or torch.equal(found[name], value)


def test_a_tensor_whose_elements_are_one(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    name = "visual.transformer.resblocks.0.mlp.c_fc.bias"
    ones = torch.full((1,), 0.1).expand(weights[name].shape)
    torch.save({"state_dict": {**weights, name: ones}}, path := tmp_path / "c.pt")
    loaded = load_tower(load_checkpoint(path, tiny_vit), "image").state_dict()[f"clip.{name}"]
    assert torch.equal(loaded, torch.full(ones.shape, 0.1).half().float())


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.ones(32, 48).to_sparse(), "holds text_projection as a sparse tensor: save the model again"),
        (torch.ones(32, 48, device="meta"), "holds text_projection without its numbers"),
        (torch.ones(32, 48, dtype=torch.complex64), "holds text_projection as complex64, and weights are"),
        (torch.ones(32, 48).to(torch.float8_e4m3fn), "holds text_projection as float8_e4m3fn, and weights are"),
    ],
)
def test_tensors_that_are_no_weights(
    tmp_path: Path, tiny_vit: Arch, weights: StateDict, value: torch.Tensor, complaint: str
) -> None:
    torch.save({"state_dict": {**weights, "text_projection": value}}, path := tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        open_checkpoint(str(path), tiny_vit, tmp_path, "huggingface")


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (("state_dict", "ema_state_dict"), "holds ema_state_dict beside state_dict, which is built"),
        (("model", "model_ema"), "holds model_ema beside model, which is built"),
        (("", "averages.ema"), "holds averages.ema beside the model, which is built"),
        (("averages.ema",), "holds a model only under averages.ema, which is built"),
        (("state_dict",), ""),
    ],
)
def test_which_of_several_models_is_built_is_told(
    tmp_path: Path,
    tiny_vit: Arch,
    weights: StateDict,
    kept: tuple[str, ...],
    told: str,
    builder_log: pytest.LogCaptureFixture,
) -> None:
    """An average of the weights gives other features than the weights."""
    saved: dict[str, Any] = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    for key in reversed(kept):
        outer, _, inner = key.partition(".")
        saved |= {outer: {inner: weights} if inner else weights} if outer else weights
    torch.save(saved, path := tmp_path / "c.pt")
    open_checkpoint(str(path), tiny_vit, tmp_path, "huggingface")
    assert told in builder_log.text
    assert bool(told) == ("which is built" in builder_log.text)


def test_flash_attentions_names_without_one_of_them(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    flash = dict(convert_state_dict(dict(weights)))
    del flash["bert.encoder.layer.1.attention.self.out_proj.bias"]
    torch.save({"state_dict": flash}, path := tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"has FlashAttention's names and lacks bert\.encoder\.layer\.1\."):
        load_checkpoint(path, tiny_vit)


def test_folders_of_deepspeed_and_in_pieces(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    step = tmp_path / "saved" / "global_step10"
    step.mkdir(parents=True)
    (tmp_path / "saved" / "zero_to_fp32.py").touch()
    torch.save({"module": weights, "ds_version": "0.14"}, step / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert load_checkpoint(step, tiny_vit).state_dict.keys() == weights.keys()
    with pytest.raises(CheckpointError, match=r"is a checkpoint of DeepSpeed: run `python .*zero_to_fp32\.py"):
        load_checkpoint(tmp_path / "saved", tiny_vit)
    (pieces := tmp_path / "pieces").mkdir()
    (pieces / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match=r"is a distributed checkpoint, in pieces: run `.*dcp_to_torch"):
        load_checkpoint(pieces, tiny_vit)
