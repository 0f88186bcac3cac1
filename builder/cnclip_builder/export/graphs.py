"""The graphs that an encoder is served as, each for what runs it; naming them costs no torch and no onnx."""

from __future__ import annotations

from typing import Literal

from cnclip_builder.arch import Arch
from cnclip_builder.tensors import Tower

Graph = Literal["plain", "unpadded", "fused"]
"""`plain` holds ONNX's own operators alone, as TensorRT's parser asks. `unpadded` leaves out texts' padding, for CPUs.
`fused` has each block in few of ONNX Runtime's operators, for GPUs."""


def has_fused_form(arch: Arch, tower: Tower) -> bool:
    """Whether an encoder can be written in ONNX Runtime's operators: a ViT, or a RoBERTa with the exact GELU."""
    if tower == "text":
        return bool(arch.model_info["text_hidden_act"] == "gelu")
    layers, patch = arch.model_info["vision_layers"], arch.model_info["vision_patch_size"]
    return isinstance(layers, int) and arch.resolution % int(patch) == 0
