"""A ViT in few operators, written from cn_clip's module: what ONNX Runtime runs on a GPU.

A convolution whose stride is its kernel is one product of patches, into which pixels' scale, mean and deviation go: no
cuDNN and no search for an algorithm. Of each block there are twelve nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnclip_builder.export.graph_writer import MICROSOFT, GraphWriter, exact
from cnclip_builder.parity.probes import PIXEL_MEAN, PIXEL_STD
from cnclip_builder.tensors import TENSORS

_ALIGNMENT = 8
"""Products in FP16 are fast for sizes that are multiples of it."""


def lower_image(graph: GraphWriter, visual: Any, resolution: int) -> str:
    """Writes a ViT's nodes.

    Args:
        graph: to write to.
        visual: a `cn_clip.clip.model.VisualTransformer`.
        resolution: side of the pixels, a multiple of the patches' side.

    Returns:
        The name of the un-normalised features `[N, D]`.
    """
    x = _patches(graph, visual, resolution)
    blocks = list(visual.transformer.resblocks)
    y = graph.norm(x, blocks[0].ln_1)
    for number, block in enumerate(blocks):
        last = number + 1 == len(blocks)
        y, x = _attend(graph, block, x, y, last)
        z = _feed_forward(graph, block, y)
        following = visual.ln_post if last else blocks[number + 1].ln_1
        y, x = graph.add_and_norm(z, x, following, exact(block.mlp.c_proj.bias))
    width = visual.conv1.out_channels
    return graph.product(graph.one("Reshape", y, graph.integers(-1, width)), exact(visual.proj))


def _patches(graph: GraphWriter, visual: Any, resolution: int) -> str:
    """Pixels uint8 `[N, R, R, 3]` -> tokens `[N, 1 + n * n, width]`, behind the first LayerNormalization."""
    patch, width = visual.conv1.kernel_size[0], visual.conv1.out_channels
    side, samples = resolution // patch, patch * patch * 3
    spare = -samples % _ALIGNMENT
    mean, std = PIXEL_MEAN.astype(np.float64)[:, None, None], PIXEL_STD.astype(np.float64)[:, None, None]
    kernel = exact(visual.conv1.weight)
    shift = -(kernel * (mean / std)).sum(axis=(1, 2, 3))
    product = (kernel / (255 * std)).transpose(2, 3, 1, 0).reshape(samples, width)
    position = exact(visual.positional_embedding)
    offsets = np.concatenate([exact(visual.class_embedding)[None] + position[:1], position[1:] + shift])

    x = graph.to_floats(TENSORS["image"].served_input)
    x = graph.one("Reshape", x, graph.integers(0, side, patch, side, patch * 3))
    x = graph.one("Transpose", x, perm=[0, 1, 3, 2, 4])
    x = graph.one("Reshape", x, graph.integers(0, side * side, samples))
    # The class token is a patch of zeros: what it is comes from the offsets.
    x = graph.one("Pad", x, graph.integers(0, 1, 0, 0, 0, spare))
    x = graph.product(x, np.concatenate([product, np.zeros((spare, width))]))
    return graph.add_and_norm(x, graph.floats(offsets[None]), visual.ln_pre)[0]


def _attend(graph: GraphWriter, block: Any, x: str, y: str, last: bool) -> tuple[str, str]:
    """Attention of a block, up to the norm behind it.

    Three products give attention queries, keys and values where it reads them; one would have to be taken apart. The
    keys' bias shifts all scores of a query alike, which softmax undoes; the values' bias passes through attention as it
    is, and is added with the bias of the product behind.

    Args:
        graph: to write to.
        block: a `cn_clip.clip.model.ResidualAttentionBlock`.
        x: tokens `[N, T, width]`.
        y: their norm.
        last: whether it is the last block: there the class token alone asks, and goes on.

    Returns:
        The norm that the feed-forward network reads, and the tokens with what attention adds.
    """
    weights, biases = exact(block.attn.in_proj_weight), exact(block.attn.in_proj_bias)
    behind, behind_bias = exact(block.attn.out_proj.weight), exact(block.attn.out_proj.bias)
    width = len(behind)
    query = graph.product(graph.first_token(y) if last else y, weights[:width].T)
    query = graph.one("Add", query, graph.floats(biases[:width]))
    key = graph.product(y, weights[width : 2 * width].T)
    value = graph.product(y, weights[2 * width :].T)
    z = graph.one("MultiHeadAttention", query, key, value, domain=MICROSOFT, num_heads=block.attn.num_heads)
    z = graph.product(z, behind.T)
    bias = behind_bias + behind @ biases[2 * width :]
    return graph.add_and_norm(z, graph.first_token(x) if last else x, block.ln_2, bias)


def _feed_forward(graph: GraphWriter, block: Any, y: str) -> str:
    """The feed-forward network of a block but for its last bias; a column of ones lets the wide product add its own."""
    wide = exact(block.mlp.c_fc.weight).T
    bias = np.zeros((_ALIGNMENT, wide.shape[1]))
    bias[0] = exact(block.mlp.c_fc.bias)
    z = graph.one("Pad", y, graph.integers(0, 0, 0, 0, 0, _ALIGNMENT), graph.floats(np.array(1.0)))
    z = graph.product(z, np.concatenate([wide, bias]))
    z = graph.one("QuickGelu", z, domain=MICROSOFT, alpha=1.702)
    return graph.product(z, exact(block.mlp.c_proj.weight).T)
