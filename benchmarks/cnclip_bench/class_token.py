"""The last block of an encoder, computed for the class token alone: nothing else of its output is read.

Both encoders give one token of their last block: the image's class token (of a ResNet, the pooled query), the text's
`[CLS]`. Keys and values of all tokens are still needed there; queries, projections and the feed-forward network of the
others are not. What is left gives the same numbers with fewer operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as torch's own documentation has it
from cn_clip.clip.model import ModifiedResNet


def compute_class_token_only(clip: Any) -> None:
    """Replaces the last block of both encoders, in place, by one that computes the class token alone.

    Args:
        clip: a `cn_clip.clip.model.CLIP` in eval mode, without FlashAttention.
    """
    if isinstance(clip.visual, ModifiedResNet):
        clip.visual.attnpool = _AttentionPool(clip.visual.attnpool)
    else:
        blocks = clip.visual.transformer.resblocks
        blocks[-1] = _ImageBlock(blocks[-1])
    layers = clip.bert.encoder.layer
    layers[-1] = _TextLayer(layers[-1])


class _ImageBlock(torch.nn.Module):
    """A ViT's last block: `[L, N, width]` -> `[1, N, width]`."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normalised = self.block.ln_1(tokens)
        attended = self.block.attn(normalised[:1], normalised, normalised, need_weights=False)[0]
        first = tokens[:1] + attended
        output: torch.Tensor = first + self.block.mlp(self.block.ln_2(first))
        return output


class _AttentionPool(torch.nn.Module):
    """A ResNet's pooling by attention, asked by the mean alone: `[N, C, H, W]` -> `[N, D]`."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        cells = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + self.pool.positional_embedding
        attended = F.scaled_dot_product_attention(
            self._heads(self.pool.q_proj(tokens[:, :1])),
            self._heads(self.pool.k_proj(tokens)),
            self._heads(self.pool.v_proj(tokens)),
        )
        output: torch.Tensor = self.pool.c_proj(attended.flatten(1))
        return output

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[N, L, C]` -> `[N, heads, L, C / heads]`."""
        return tokens.reshape(*tokens.shape[:2], self.pool.num_heads, -1).transpose(1, 2)


class _TextLayer(torch.nn.Module):
    """BERT's last layer: `[N, L, width]` -> `[N, 1, width]`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        layer.attention.self.query = torch.nn.Sequential(_FirstToken(), layer.attention.self.query)
        self.layer = layer

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor, head_mask: None) -> torch.Tensor:
        (context,) = self.layer.attention.self(tokens, attention_mask, head_mask)
        attended = self.layer.attention.output(context, tokens[:, :1])
        output: torch.Tensor = self.layer.output(self.layer.intermediate(attended), attended)
        return output


class _FirstToken(torch.nn.Module):
    """`[N, L, width]` -> `[N, 1, width]`."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, :1]
