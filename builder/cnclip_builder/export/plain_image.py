"""A ViT in ONNX's own operators, written from cn_clip's module: what every runtime and TensorRT's parser reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnclip_builder.export.graph_writer import GraphWriter
from cnclip_builder.export.plain_attention import attend
from cnclip_builder.tensors import TENSORS

_QUICK_GELU = 1.702
"""cn_clip's `QuickGELU`: x * sigmoid(1.702 x)."""


def lower_plain_image(graph: GraphWriter, visual: Any) -> None:
    """Writes a ViT's nodes; the last gives the un-normalised features `[N, D]`.

    Of the last block the class token alone is computed: nothing else of its output is read.

    Args:
        graph: to write to.
        visual: a `cn_clip.clip.model.VisualTransformer`.
    """
    graph.enter("patches")
    x = graph.norm(_embed(graph, visual), visual.ln_pre)
    blocks = list(visual.transformer.resblocks)
    for number, block in enumerate(blocks):
        graph.enter(f"resblocks.{number}")
        x = _block(graph, block, x, last=number + 1 == len(blocks))
    graph.enter("features")
    width, _ = visual.proj.shape
    token = graph.one("Reshape", graph.norm(x, visual.ln_post), graph.integers(-1, width))
    graph.product(token, visual.proj.detach().numpy())


def _embed(graph: GraphWriter, visual: Any) -> str:
    """Images `[N, 3, R, R]` -> the class token and a token for each patch, with their positions: `[N, T, width]`."""
    image, conv = TENSORS["image"].input, visual.conv1
    width, (side, _) = conv.out_channels, conv.kernel_size
    position = visual.positional_embedding.detach().numpy()
    kernel = graph.floats(conv.weight.detach().numpy())
    grid = graph.one("Conv", image, kernel, kernel_shape=[side, side], strides=[side, side])
    patches = graph.one("Reshape", grid, graph.integers(0, width, len(position) - 1))
    patches = graph.one("Transpose", patches, perm=[0, 2, 1])
    rows = graph.one("Concat", graph.one("Shape", image, start=0, end=1), graph.integers(1, width), axis=0)
    token = graph.one("Expand", graph.floats(visual.class_embedding.detach().numpy()), rows)
    tokens = graph.one("Concat", token, patches, axis=1)
    return graph.one("Add", tokens, graph.floats(position))


def _block(graph: GraphWriter, block: Any, x: str, *, last: bool) -> str:
    """A `cn_clip.clip.model.ResidualAttentionBlock`: `[N, T, width]`, of the last block `[N, 1, width]`."""
    y = graph.norm(x, block.ln_1)
    x = graph.first_token(x) if last else x
    x = graph.one("Add", x, _attend(graph, block.attn, y, last))
    z = graph.linear(graph.norm(x, block.ln_2), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    gate = graph.one("Sigmoid", graph.one("Mul", z, graph.floats(np.array(_QUICK_GELU))))
    z = graph.one("Mul", z, gate)
    return graph.one("Add", x, graph.linear(z, block.mlp.c_proj.weight, block.mlp.c_proj.bias))


def _attend(graph: GraphWriter, attn: Any, y: str, last: bool) -> str:
    """A `torch.nn.MultiheadAttention`, of the last block asked by the class token alone."""
    width, heads = attn.embed_dim, attn.num_heads
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if last:
        query = graph.linear(graph.first_token(y), weight[:width], bias[:width])
        both = graph.linear(y, weight[width:], bias[width:])
        key, value = graph.op("Split", both, graph.integers(width, width), outputs=(0, 1), axis=-1)
    else:
        all_three = graph.linear(y, weight, bias)
        split = graph.integers(width, width, width)
        query, key, value = graph.op("Split", all_three, split, outputs=(0, 1, 2), axis=-1)
    mixed = attend(graph, query, key, value, heads=heads, width=width)
    return graph.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)
