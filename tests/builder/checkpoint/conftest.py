"""What checkpoints in these tests hold."""

from __future__ import annotations

import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch


@pytest.fixture(scope="module")
def weights(tiny_vit: Arch) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    state_dict: dict[str, torch.Tensor] = CLIP(**tiny_vit.model_info).state_dict()
    return state_dict
