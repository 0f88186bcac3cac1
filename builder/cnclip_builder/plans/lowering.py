"""Writes a model of opset 18 in opset 17 or 16, for TensorRT's parsers.

TensorRT 8.6 and later know LayerNormalization, and opset 17 with it; 8.5 stops at 16. Opset 18 brought nothing that the
encoders need, but moved the axes of reductions from an attribute to an input, which 8.6's parser does not read.

What is lowered here is exact. A LayerNormalization is written out in FP32, whatever the type around it: its sum of
squares leaves FP16's range where a Transformer's activations have outliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnclip_builder.errors import BuildError
from cnclip_builder.export.files import in_order
from cnclip_builder.tensors import FP32_PREFIX

_REDUCTIONS = ("ReduceL2", "ReduceMean")


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Rewrites a model in place.

    Args:
        model: of opset 18; its weights need not be loaded.
        opset: 17 or 16.

    Raises:
        BuildError: it holds an operator that changed after that opset and that this module can't write the old way.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if opset < 17 and node.op_type == "LayerNormalization":
            nodes.extend(_layer_normalization(node, constants, graph))
        elif opset < 17 and node.op_type == "Shape":
            nodes.extend(_shape(node, graph))
        elif node.op_type in _REDUCTIONS:
            nodes.append(_reduction(node, constants))
        else:
            nodes.append(node)
    given = {tensor.name for tensor in graph.input} | {tensor.name for tensor in graph.initializer}
    ordered = in_order(nodes, given)
    del graph.node[:]
    graph.node.extend(ordered)
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = opset
    _check(model, opset)


def _check(model: onnx.ModelProto, opset: int) -> None:
    """Refuses operators that the opset lacks, or has in another form."""
    same = {*_REDUCTIONS, "Split"}  # a Split whose parts are said by its second input is one of opset 13
    for node in model.graph.node:
        since = onnx.defs.get_schema(node.op_type, 18, node.domain).since_version
        if since > opset and node.op_type not in same:
            raise BuildError(
                f"node {node.name!r} is a {node.op_type} of opset {since}, which opset {opset} lacks: this TensorRT "
                "can't take this export; use TensorRT 10 or later, or PLATFORM=onnxruntime"
            )


def _reduction(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.NodeProto:
    """Puts the axes, a constant, into the attribute."""
    source, axes = node.input
    lowered = helper.make_node(node.op_type, [source], node.output, node.name, **_attributes(node))
    lowered.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(constants[axes]).tolist()))
    return lowered


def _shape(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Takes a part of a shape by Slice: Shape itself can since opset 15, which 8.5's parser need not read."""
    attributes = _attributes(node)
    (output,) = node.output
    bounds = [
        _constant(graph, f"{output}_{name}", np.array([number], dtype=np.int64))
        for name, number in (("start", attributes["start"]), ("end", attributes["end"]), ("axis", 0))
    ]
    whole = helper.make_node("Shape", node.input, [f"{output}_whole"], node.name)
    return [whole, helper.make_node("Slice", [whole.output[0], *bounds], [output], f"{node.name}_part")]


def _layer_normalization(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in FP32."""
    source, scale, bias = node.input
    (output,) = node.output
    kind = constants[scale].data_type
    epsilon = _constant(graph, f"{output}_epsilon", np.array(_attributes(node)["epsilon"], dtype=np.float32))

    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], result: str, **settings: Any) -> str:
        made = f"{output}_{result}"
        nodes.append(helper.make_node(operator, inputs, [made], f"{FP32_PREFIX}{node.name}_{result}", **settings))
        return made

    if kind != TensorProto.FLOAT:
        source, scale, bias = (
            add("Cast", [what], name, to=TensorProto.FLOAT)
            for what, name in ((source, "source"), (scale, "scale"), (bias, "bias"))
        )
    mean = add("ReduceMean", [source], "mean", axes=[-1], keepdims=1)
    centred = add("Sub", [source, mean], "centred")
    square = add("Mul", [centred, centred], "square")
    variance = add("ReduceMean", [square], "variance", axes=[-1], keepdims=1)
    deviation = add("Sqrt", [add("Add", [variance, epsilon], "stabilised")], "deviation")
    normalised = add("Div", [centred, deviation], "normalised")
    shifted = add("Add", [add("Mul", [normalised, scale], "scaled"), bias], "shifted")
    if kind == TensorProto.FLOAT:
        nodes[-1].output[0] = output
    else:
        nodes.append(helper.make_node("Cast", [shifted], [output], f"{node.name}_to_fp16", to=kind))
    return nodes


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(graph: onnx.GraphProto, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
