"""PyTorch beside: cn_clip's own model, and the same with what PyTorch has since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # as torch's own documentation has it
from cnclip_builder.tensors import TOWERS, Tower

from cnclip_bench.gpu_report.inputs import batches
from cnclip_bench.gpu_report.rows import Report, Setup, Timing
from cnclip_bench.gpu_report.timing import time_runs
from cnclip_bench.subject import checkpoint_file

__all__ = ["modernise", "time_pytorch"]

# Rows of FP16 that the two ways may differ by.
_TOLERANCE = 1e-3


def time_pytorch(setup: Setup, report: Report) -> None:
    """Times cn_clip's model, on a GPU in FP16 by its `convert_weights`, then with `scaled_dot_product_attention`.

    Raises:
        ValueError: The two ways' features differ.
    """
    from cn_clip.clip.model import convert_weights
    from cnclip_builder.arch import get_arch
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.towers import load_tower

    arch = get_arch(setup.arch)
    checkpoint = load_checkpoint(checkpoint_file(setup.checkpoint, arch), arch)
    device, dtype = ("cuda", torch.float16) if setup.gpu else ("cpu", torch.float32)
    for tower in TOWERS:
        module: Any = load_tower(checkpoint, tower)
        if setup.gpu:
            convert_weights(module.clip)
        # The other encoder stays without storage, which can't be moved.
        if tower == "image":
            module.clip.visual.to(device)
        else:
            module.clip.bert.to(device)
            module.clip.text_projection = torch.nn.Parameter(
                module.clip.text_projection.to(device), requires_grad=False
            )
        timed = [(length, _inputs(rows, device, dtype)) for length, rows in batches(tower, arch.resolution)]
        some = timed[1][1]  # eight rows
        with torch.inference_mode():
            expected = module(some)
        _time(setup, report, "PyTorch, cn_clip's own", tower, module, timed)
        if modernise(module.clip, tower):
            with torch.inference_mode():
                found = module(some)
            if (distance := float((1 - F.cosine_similarity(found.float(), expected.float())).max())) > _TOLERANCE:
                raise ValueError(f"{tower}s: scaled_dot_product_attention is off by 1 - cosine = {distance:.1e}")
            _time(setup, report, "PyTorch, scaled_dot_product_attention", tower, module, timed)


def _inputs(rows: npt.NDArray[Any], device: str, dtype: torch.dtype) -> torch.Tensor:
    """What cn_clip's encoders take, on the device: of pixels, uint8 `[N, R, R, 3]`, or of token ids, int32 `[N, L]`."""
    tensor = torch.from_numpy(rows).to(device)
    return tensor.long() if rows.ndim == 2 else (tensor.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1).contiguous()


def _time(
    setup: Setup, report: Report, way: str, tower: Tower, module: Any, timed: Iterable[tuple[int, torch.Tensor]]
) -> None:
    for length, inputs in timed:

        def run(inputs: torch.Tensor = inputs) -> None:
            with torch.inference_mode():
                module(inputs)
            if setup.gpu:
                torch.cuda.synchronize()

        first, ms = time_runs(run, setup.seconds)
        report(Timing(way, tower, len(inputs), length, first, ms))


def modernise(clip: Any, tower: Tower) -> bool:
    """Gives an encoder `scaled_dot_product_attention`, and norms that do not go by way of FP32, in place.

    Args:
        clip: A `cn_clip.clip.model.CLIP`.
        tower: Which encoder.

    Returns:
        Whether there was something to give: a ResNet has neither.
    """
    if tower == "text":
        for layer in clip.bert.encoder.layer:
            layer.attention.self = _TextAttention(layer.attention.self)
        return True
    if not hasattr(clip.visual, "transformer"):
        return False
    for block in clip.visual.transformer.resblocks:
        block.attn = _ImageAttention(block.attn)
        block.ln_1, block.ln_2 = _plain(block.ln_1, clip.dtype), _plain(block.ln_2, clip.dtype)
    for name in ("ln_pre", "ln_post"):
        setattr(clip.visual, name, _plain(getattr(clip.visual, name), clip.dtype))
    return True


def _plain(norm: torch.nn.LayerNorm, dtype: torch.dtype) -> torch.nn.LayerNorm:
    made = torch.nn.LayerNorm(list(norm.normalized_shape), norm.eps, device=norm.weight.device)
    made.load_state_dict(norm.state_dict())
    return made.to(dtype)


class _ImageAttention(torch.nn.Module):
    """`torch.nn.MultiheadAttention` of tokens with themselves, `[L, N, width]`."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, tokens: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        own = self.attention
        length, count, width = tokens.shape
        together = F.linear(tokens, own.in_proj_weight, own.in_proj_bias)
        # [L, N, 3, heads, width of a head] -> three times [N, heads, L, width of a head].
        query, key, value = together.view(length, count, 3, own.num_heads, -1).permute(2, 1, 3, 0, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return (own.out_proj(attended.permute(2, 0, 1, 3).reshape(length, count, width)),)


class _TextAttention(torch.nn.Module):
    """cn_clip's `BertSelfAttention`, `[N, L, width]`; its mask is added to scores."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, head_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        own = self.attention
        query, key, value = (own.transpose_for_scores(part(tokens)) for part in (own.query, own.key, own.value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return (attended.transpose(1, 2).reshape(tokens.shape),)
