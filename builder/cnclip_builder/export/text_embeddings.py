"""A RoBERTa's embeddings, which its plain and its fused graph have in common."""

from __future__ import annotations

from typing import Any

from cnclip_builder.export.graph_writer import GraphWriter, exact

__all__ = ["embed"]


def embed(graph: GraphWriter, embeddings: Any, ids: str) -> str:
    """Ids `[N, L]` -> tokens `[N, L, width]`. All are of type 0.

    Args:
        graph: to write to.
        embeddings: a `cn_clip.clip.modeling_bert.BertEmbeddings`.
        ids: the name of the ids, int32 or int64.
    """
    positions = exact(embeddings.position_embeddings.weight) + exact(embeddings.token_type_embeddings.weight[0])
    length = graph.one("Shape", ids, start=1, end=2)
    here = graph.one("Slice", graph.floats(positions), graph.integers(0), length, graph.integers(0))
    # Not by way of float64: it is the largest weight, and nothing is folded into it.
    words = graph.one("Gather", graph.floats(embeddings.word_embeddings.weight.detach().numpy()), ids)
    return graph.norm(graph.one("Add", words, here), embeddings.LayerNorm)
