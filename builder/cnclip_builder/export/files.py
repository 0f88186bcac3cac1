"""Names and tensors of the ONNX artefacts, as cn_clip's own scripts have them, and small helpers on such files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cnclip_builder.arch import Arch
from cnclip_builder.errors import BuildError
from cnclip_builder.tensors import BATCH, LENGTH, TENSORS, InputSpec, Precision, Tower

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Of all graphs but the fused ones; from 17 on LayerNormalization is one operator."""

FUSED_OPSET = 17
"""Of the fused graphs, those in few operators.

A kernel of ONNX Runtime's that has no end runs nodes of just the version that it began with (kernel_registry.cc). The
CUDA provider's Pad began with 13, in 1.17 for one: a Pad of opset 18, one a layer, would go to the CPU, its tokens
copied there and back, and nothing would say so.
"""

EXTERNAL_DATA_SUFFIX = ".extra_file"
"""cn_clip's suffix for the file of weights beside an .onnx file."""

SERVED_FILENAME = "model.onnx"
"""Triton's default name for an ONNX model."""

_FILE_PARTS: dict[Tower, str] = {"image": "img", "text": "txt"}


def onnx_name(arch: Arch, tower: Tower, precision: Precision) -> str:
    """Names an artefact as cn_clip's pytorch_to_onnx.py does: "vit-b-16.img.fp32.onnx"."""
    return f"{arch.slug}.{_FILE_PARTS[tower]}.{precision}.onnx"


def served_input(arch: Arch, tower: Tower) -> InputSpec:
    """The input tensor of a served encoder: uint8 pixels `[N, R, R, 3]`, or int32 ids `[N, L]`."""
    name = TENSORS[tower].served_input
    if tower == "text":
        return InputSpec(name, "int32", (BATCH, LENGTH))
    return InputSpec(name, "uint8", (BATCH, arch.resolution, arch.resolution, 3))


def plain_input(arch: Arch, tower: Tower) -> InputSpec:
    """The input tensor of an encoder as cn_clip's scripts have it: float32 `[N, 3, R, R]`, or int64 ids `[N, L]`."""
    name = TENSORS[tower].input
    if tower == "text":
        return InputSpec(name, "int64", (BATCH, LENGTH))
    return InputSpec(name, "float32", (BATCH, 3, arch.resolution, arch.resolution))


def external_data_of(path: Path) -> Path:
    """The file of weights that belongs to an .onnx file."""
    return path.with_name(path.name + EXTERNAL_DATA_SUFFIX)


def in_order(nodes: Iterable[onnx.NodeProto], given: set[str]) -> list[onnx.NodeProto]:
    """Puts every node after those that make what it reads, as ONNX asks; the FP16 converter appends its casts.

    Args:
        nodes: of a graph.
        given: names of its inputs and initializers.

    Raises:
        BuildError: a node reads what nothing makes.
    """
    made, waiting = set(given), list(nodes)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        late = []
        for node in waiting:
            if all(not name or name in made for name in node.input):
                ordered.append(node)
                made.update(node.output)
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise BuildError(f"node {late[0].name!r} reads a tensor that nothing makes: export the checkpoint again")
        waiting = late
    return ordered


def drop_unread(graph: onnx.GraphProto) -> None:
    """Takes out the initializers that no node reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
