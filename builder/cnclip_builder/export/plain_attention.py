"""Attention in ONNX's own operators, as the plain graphs of all encoders have it."""

from __future__ import annotations

import numpy as np

from cnclip_builder.export.graph_writer import GraphWriter

_BY_HEADS = [0, 2, 1, 3]
_BY_HEADS_TRANSPOSED = [0, 2, 3, 1]


def attend(graph: GraphWriter, query: str, key: str, value: str, *, heads: int, width: int) -> str:
    """Scaled dot-product attention: queries `[N, Q, width]`, keys and values `[N, T, width]` -> `[N, Q, width]`.

    Queries are scaled before the product: there are fewer of them than of scores, which so stay in FP16's range.
    """
    scale = graph.floats(np.array((width // heads) ** -0.5))
    scaled = graph.one("Mul", heads_of(graph, query, heads, width), scale)
    scores = graph.one("MatMul", scaled, heads_of(graph, key, heads, width, transposed=True))
    return weigh(graph, scores, heads_of(graph, value, heads, width), width)


def heads_of(graph: GraphWriter, x: str, heads: int, width: int, *, transposed: bool = False) -> str:
    """`[N, T, width]` -> `[N, heads, T, width / heads]`; transposed, as keys are read, its last two axes."""
    apart = graph.one("Reshape", x, graph.integers(0, -1, heads, width // heads))
    return graph.one("Transpose", apart, perm=_BY_HEADS_TRANSPOSED if transposed else _BY_HEADS)


def weigh(graph: GraphWriter, scores: str, values: str, width: int) -> str:
    """Softmax of the scores `[N, heads, Q, T]`, times the values `[N, heads, T, ...]` -> `[N, Q, width]`."""
    mixed = graph.one("MatMul", graph.one("Softmax", scores, axis=-1), values)
    return graph.one("Reshape", graph.one("Transpose", mixed, perm=_BY_HEADS), graph.integers(0, -1, width))
