"""A RoBERTa in ONNX's own operators, written from cn_clip's module: what every runtime and TensorRT's parser reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto

from cnclip_builder.export.graph_writer import GraphWriter
from cnclip_builder.export.plain_attention import heads_of, weigh
from cnclip_builder.export.text_embeddings import embed
from cnclip_builder.tensors import TENSORS

_IDS = TENSORS["text"].input
_MASKED = -10000.0
"""What cn_clip's `BertModel` adds to the scores of padding."""


def lower_plain_text(graph: GraphWriter, bert: Any, projection: Any) -> None:
    """Writes a RoBERTa's nodes; the last gives the un-normalised features `[N, D]`.

    Of the last layer the first token alone is computed: nothing else of its output is read.

    Args:
        graph: to write to.
        bert: a `cn_clip.clip.modeling_bert.BertModel`.
        projection: `[width, D]`.
    """
    graph.enter("mask")
    mask = _mask(graph)
    graph.enter("embeddings")
    x = embed(graph, bert.embeddings, _IDS)
    layers, activate = list(bert.encoder.layer), _ACTIVATIONS[bert.config.hidden_act]
    for number, layer in enumerate(layers):
        graph.enter(f"layer.{number}")
        asking = graph.first_token(x) if number + 1 == len(layers) else x
        z = _attend(graph, layer.attention.self, asking, x, mask)
        behind = layer.attention.output
        z = graph.linear(z, behind.dense.weight, behind.dense.bias)
        y = graph.norm(graph.one("Add", z, asking), behind.LayerNorm)
        z = activate(graph, graph.linear(y, layer.intermediate.dense.weight, layer.intermediate.dense.bias))
        z = graph.linear(z, layer.output.dense.weight, layer.output.dense.bias)
        x = graph.norm(graph.one("Add", z, y), layer.output.LayerNorm)
    graph.enter("features")
    width, _ = projection.shape
    graph.product(graph.one("Reshape", x, graph.integers(-1, width)), projection.detach().numpy())


def _mask(graph: GraphWriter) -> str:
    """What is added to the scores of each text: nothing, or so little that softmax makes 0 of it. `[N, 1, 1, L]`."""
    padding = graph.one("Cast", graph.one("Equal", _IDS, graph.integers(0)), to=TensorProto.FLOAT)
    padding = graph.one("Unsqueeze", padding, graph.integers(1, 2))
    return graph.one("Mul", padding, graph.floats(np.array(_MASKED)))


def _attend(graph: GraphWriter, attention: Any, asking: str, x: str, mask: str) -> str:
    """A `BertSelfAttention` of all tokens, asked by all or by the first: `[N, Q, width]`."""
    heads, width = attention.num_attention_heads, attention.all_head_size
    query, key, value = (
        graph.linear(tokens, part.weight, part.bias)
        for tokens, part in ((asking, attention.query), (x, attention.key), (x, attention.value))
    )
    keys = heads_of(graph, key, heads, width, transposed=True)
    scores = graph.one("MatMul", heads_of(graph, query, heads, width), keys)
    scores = graph.one("Div", scores, graph.floats(np.array(math.sqrt(width // heads))))
    return weigh(graph, graph.one("Add", scores, mask), heads_of(graph, value, heads, width), width)


def _gelu(graph: GraphWriter, x: str) -> str:
    """`x / 2 * (1 + erf(x / sqrt(2)))`, in the order in which ONNX Runtime knows it for one operator."""
    erf = graph.one("Erf", graph.one("Div", x, graph.floats(np.array(math.sqrt(2)))))
    half = graph.one("Mul", x, graph.floats(np.array(0.5)))
    return graph.one("Mul", half, graph.one("Add", erf, graph.floats(np.array(1.0))))


def _gelu_new(graph: GraphWriter, x: str) -> str:
    """`x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`."""
    square = graph.one("Mul", graph.one("Mul", x, x), graph.floats(np.array(0.044715)))
    inner = graph.one("Add", x, graph.one("Mul", square, x))
    tanh = graph.one("Tanh", graph.one("Mul", inner, graph.floats(np.array(math.sqrt(2 / math.pi)))))
    half = graph.one("Mul", x, graph.floats(np.array(0.5)))
    return graph.one("Mul", half, graph.one("Add", tanh, graph.floats(np.array(1.0))))


def _swish(graph: GraphWriter, x: str) -> str:
    return graph.one("Mul", x, graph.one("Sigmoid", x))


def _relu(graph: GraphWriter, x: str) -> str:
    return graph.one("Relu", x)


_ACTIVATIONS = {"gelu": _gelu, "gelu_new": _gelu_new, "swish": _swish, "relu": _relu}
"""All that cn_clip's `BertModel` knows (`ACT2FN` of its modeling_bert.py), by the names that it gives them."""
