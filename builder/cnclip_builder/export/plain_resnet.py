"""A ResNet in ONNX's own operators, written from cn_clip's module: what every runtime and TensorRT's parser reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnclip_builder.export.graph_writer import GraphWriter, exact
from cnclip_builder.export.plain_attention import attend
from cnclip_builder.tensors import TENSORS


def lower_plain_resnet(graph: GraphWriter, visual: Any) -> None:
    """Writes a ResNet's nodes; the last gives the un-normalised features `[N, D]`.

    Args:
        graph: to write to.
        visual: a `cn_clip.clip.model.ModifiedResNet`.
    """
    graph.enter("stem")
    x = TENSORS["image"].input
    for number in (1, 2, 3):
        conv, norm = getattr(visual, f"conv{number}"), getattr(visual, f"bn{number}")
        x = graph.one("Relu", _convolve(graph, x, conv, norm))
    x = _pool(graph, x, visual.avgpool.kernel_size)
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(visual, f"layer{stage}")):
            graph.enter(f"layer{stage}.{number}")
            x = _bottleneck(graph, block, x)
    graph.enter("attnpool")
    _attention_pool(graph, visual.attnpool, x)


def _convolve(graph: GraphWriter, x: str, conv: Any, norm: Any) -> str:
    """A convolution without a bias and the batch normalisation behind it, as one convolution."""
    factor = exact(norm.weight) / np.sqrt(exact(norm.running_var) + norm.eps)
    kernel = exact(conv.weight) * factor[:, None, None, None]
    bias = exact(norm.bias) - exact(norm.running_mean) * factor
    return graph.one(
        "Conv",
        x,
        graph.floats(kernel),
        graph.floats(bias),
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
    )


def _pool(graph: GraphWriter, x: str, side: int) -> str:
    """The mean of each square of cells."""
    return graph.one("AveragePool", x, kernel_shape=[side, side], strides=[side, side])


def _bottleneck(graph: GraphWriter, block: Any, x: str) -> str:
    """A `cn_clip.clip.model.Bottleneck`."""
    y = graph.one("Relu", _convolve(graph, x, block.conv1, block.bn1))
    y = graph.one("Relu", _convolve(graph, y, block.conv2, block.bn2))
    y = _pool(graph, y, block.stride) if block.stride > 1 else y
    y = _convolve(graph, y, block.conv3, block.bn3)
    if block.downsample is not None:
        x = _pool(graph, x, block.stride) if block.stride > 1 else x
        _, conv, norm = block.downsample
        x = _convolve(graph, x, conv, norm)
    return graph.one("Relu", graph.one("Add", y, x))


def _attention_pool(graph: GraphWriter, pool: Any, x: str) -> None:
    """A `cn_clip.clip.model.AttentionPool2d`, asked by the mean alone: `[N, C, H, W]` -> `[N, D]`."""
    position = pool.positional_embedding.detach().numpy()
    tokens, width = position.shape
    cells = graph.one("Reshape", x, graph.integers(0, width, tokens - 1))
    cells = graph.one("Transpose", cells, perm=[0, 2, 1])
    mean = graph.one("ReduceMean", cells, graph.integers(1), keepdims=1)
    all_tokens = graph.one("Add", graph.one("Concat", mean, cells, axis=1), graph.floats(position))
    query, key, value = (
        graph.linear(asked, part.weight, part.bias)
        for asked, part in (
            (graph.first_token(all_tokens), pool.q_proj),
            (all_tokens, pool.k_proj),
            (all_tokens, pool.v_proj),
        )
    )
    mixed = attend(graph, query, key, value, heads=pool.num_heads, width=width)
    token = graph.one("Reshape", mixed, graph.integers(-1, width))
    graph.linear(token, pool.c_proj.weight, pool.c_proj.bias)
