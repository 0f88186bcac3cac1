"""A RoBERTa in few operators, written from cn_clip's module: what ONNX Runtime runs on a GPU. Seven nodes a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from cnclip_builder.export.graph_writer import MICROSOFT, GraphWriter, exact
from cnclip_builder.export.text_embeddings import embed
from cnclip_builder.tensors import TENSORS

_IDS = TENSORS["text"].served_input


def lower_text(graph: GraphWriter, bert: Any, projection: Any) -> str:
    """Writes a RoBERTa's nodes, for ids padded with zeros on the right, as our tokeniser's are.

    Args:
        graph: to write to.
        bert: a `cn_clip.clip.modeling_bert.BertModel` whose activation is "gelu".
        projection: `[width, D]`.

    Returns:
        The name of the un-normalised features `[N, D]`.
    """
    x = embed(graph, bert.embeddings, _IDS)
    mask = _mask(graph)
    layers = list(bert.encoder.layer)
    for number, layer in enumerate(layers):
        own, behind = layer.attention.self, layer.attention.output
        parts = (own.query, own.key, own.value)
        z = graph.one(
            "Attention",
            x,
            graph.floats(np.concatenate([exact(part.weight) for part in parts]).T),
            graph.floats(np.concatenate([exact(part.bias) for part in parts])),
            mask,
            domain=MICROSOFT,
            num_heads=own.num_attention_heads,
        )
        if number + 1 == len(layers):  # the first token alone goes on
            x, z = graph.first_token(x), graph.first_token(z)
        z = graph.product(z, exact(behind.dense.weight).T)
        y, _ = graph.add_and_norm(z, x, behind.LayerNorm, exact(behind.dense.bias))
        z = graph.product(y, exact(layer.intermediate.dense.weight).T)
        z = graph.one("BiasGelu", z, graph.floats(exact(layer.intermediate.dense.bias)), domain=MICROSOFT)
        z = graph.product(z, exact(layer.output.dense.weight).T)
        x, _ = graph.add_and_norm(z, y, layer.output.LayerNorm, exact(layer.output.dense.bias))
    width = projection.shape[0]
    return graph.product(graph.one("Reshape", x, graph.integers(-1, width)), exact(projection))


def _mask(graph: GraphWriter) -> str:
    """How long each text is, where its queries start and where its keys start: int32 `[3 N + 2]`.

    Of ONNX Runtime's masks it is the one that takes its memory-efficient kernel on every card, which has nothing to set
    up for a batch of another size; lengths alone take cuDNN's on Hopper. A text is as long as it has ids that are not
    padding, one at least, so that a row of zeros has features too.
    """
    real = graph.one("Cast", graph.one("Cast", _IDS, to=TensorProto.BOOL), to=TensorProto.INT32)
    lengths = graph.one("Max", graph.one("ReduceSum", real, graph.integers(1), keepdims=0), graph.int32(1, 1))
    shape = graph.one("Cast", graph.one("Shape", _IDS), to=TensorProto.INT32)
    texts, length = (graph.one("Gather", shape, graph.int32(axis)) for axis in (0, 1))
    end = graph.one("Mul", graph.one("Add", texts, graph.int32(1)), length)
    starts = graph.one("Range", graph.int32(0), end, length)
    return graph.one("Concat", lengths, starts, starts, axis=0)
