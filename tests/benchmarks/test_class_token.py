"""The shortened last block gives what cn_clip's whole one gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cnclip_bench.class_token import compute_class_token_only
from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.sources import fetch_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.tensors import TOWERS, Tower


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", ["tiny_vit", "tiny_resnet"])
def test_features_stay_and_work_shrinks(
    request: pytest.FixtureRequest, kind: str, tower: Tower, tmp_path: Path
) -> None:
    arch: Arch = request.getfixturevalue(kind)
    checkpoint = load_checkpoint(fetch_checkpoint("random:3", arch, tmp_path, "huggingface").path, arch)
    module = load_tower(checkpoint, tower)
    probes = getattr(make_probes(arch), tower)
    expected, work = encode(module, probes), operations(module, probes[:1])
    compute_class_token_only(module.clip)
    np.testing.assert_allclose(encode(module, probes), expected, rtol=2e-5, atol=2e-6)
    assert operations(module, probes[:1]) < work


def operations(module: torch.nn.Module, inputs: np.ndarray) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(torch.from_numpy(inputs))
    return counter.get_total_flops()
