"""Checkpoints whose numbers can be no model's are told when they are opened, by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.stage import open_checkpoint
from cnclip_builder.errors import CheckpointError
from safetensors.torch import save_file

from tests.builder.damaged import complaint_of, cut, require_one_line_about, turned

StateDict = dict[str, torch.Tensor]


def open_it(folder: Path, arch: Arch, weights: StateDict) -> Any:
    torch.save({"state_dict": weights}, folder / "c.pt")
    return open_checkpoint(str(folder / "c.pt"), arch, folder, "huggingface")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["visual.proj", "bert.encoder.layer.1.output.dense.bias", "text_projection"])
def test_a_bad_number_is_told_with_its_tensor(
    tmp_path: Path, tiny_vit: Arch, weights: StateDict, value: float, dtype: torch.dtype, name: str
) -> None:
    bad = weights[name].to(dtype).clone()
    bad.view(-1)[bad.numel() // 2] = value
    with pytest.raises(CheckpointError, match=rf"NaN or infinite numbers in 1 of \d+ tensors, {name}: .*take a"):
        open_it(tmp_path, tiny_vit, {**weights, name: bad})


def test_many_bad_tensors_are_counted(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    bad = {name: torch.full_like(value, math.nan) if "visual" in name else value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"\d\d of \d\d tensors, visual\S+, visual\S+, visual\S+ and \d\d more"):
        open_it(tmp_path, tiny_vit, bad)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 1000.0, 100.0, 14.3, -20.0])
def test_a_scale_out_of_proportion(tmp_path: Path, tiny_vit: Arch, weights: StateDict, scale: float) -> None:
    with pytest.raises(CheckpointError, match=r"logit_scale is .* \(4\.6052 in the official checkpoints\)"):
        open_it(tmp_path, tiny_vit, {**weights, "logit_scale": torch.tensor(scale)})


def test_a_scale_that_is_the_factor_itself_is_seen(tmp_path: Path, tiny_vit: Arch, weights: StateDict) -> None:
    with pytest.raises(CheckpointError, match=r"if 100 is the factor itself, save its logarithm, 4\.6052"):
        open_it(tmp_path, tiny_vit, {**weights, "logit_scale": torch.tensor(100.0)})


@pytest.mark.parametrize("scale", [0.0, math.log(1 / 0.07), 4.6052, 5.0])
def test_a_plausible_scale(tmp_path: Path, tiny_vit: Arch, weights: StateDict, scale: float) -> None:
    facts = open_it(tmp_path, tiny_vit, {**weights, "logit_scale": torch.tensor(scale)})
    assert facts.logit_scale == pytest.approx(math.exp(scale), rel=1e-6)


def test_integers_are_no_weights_but_a_batchnorms_counter_is_none(
    tmp_path: Path, tiny_vit: Arch, weights: StateDict
) -> None:
    integers = weights["text_projection"].to(torch.int64)
    with pytest.raises(CheckpointError, match="holds text_projection as int64, and weights are FP32"):
        open_it(tmp_path, tiny_vit, {**weights, "text_projection": integers})
    open_it(tmp_path, tiny_vit, {**weights, "visual.bn1.num_batches_tracked": torch.tensor(7)})


def write(path: Path, weights: StateDict, form: str) -> None:
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_cut_at_every_eighth(tmp_path: Path, tiny_vit: Arch, weights: StateDict, form: str) -> None:
    write(path := tmp_path / "c.pt", weights, form)
    for content in cut(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"c\.pt .*(fetch it again|leave ARCH out)"):
            open_checkpoint(str(path), tiny_vit, tmp_path, "huggingface")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_turned_bytes(tmp_path: Path, tiny_vit: Arch, weights: StateDict, form: str) -> None:
    """One line that names the file, or the right checkpoint; other formats than torch's zip have no checksums."""
    write(path := tmp_path / "c.pt", weights, form)
    whole = path.read_bytes()
    told = 0
    for content in turned(whole, 20, [*range(0, 200, 17), len(whole) - 10]):
        path.write_bytes(content)
        complaint = complaint_of(lambda: open_checkpoint(str(path), tiny_vit, tmp_path, "huggingface"))
        if complaint is not None:
            told += 1
            require_one_line_about(path, complaint)
            continue
        loaded = load_checkpoint(path, tiny_vit).state_dict
        assert loaded.keys() == weights.keys()
        if form == "zip":
            assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert told > (20 if form == "zip" else 3)
