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

_REDUCTIONS = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")


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
        elif opset < 18 and node.op_type in _REDUCTIONS:
            nodes.append(_reduction(node, constants))
        elif opset < 18 and node.op_type == "Split":
            nodes.append(_without(node, "num_outputs"))
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
    rewritten = {*_REDUCTIONS, "Split"}
    for node in model.graph.node:
        since = onnx.defs.get_schema(node.op_type, 18, node.domain).since_version
        if since > opset and node.op_type not in rewritten:
            raise BuildError(
                f"node {node.name!r} is a {node.op_type} of opset {since}, which opset {opset} lacks: this TensorRT "
                "can't take this export; use TensorRT 10 or later, or PLATFORM=onnxruntime"
            )


def _reduction(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.NodeProto:
    """Puts constant axes into the attribute; in ReduceSum they have been an input since opset 13."""
    if node.op_type == "ReduceSum":
        return node
    axes = constants.get(node.input[1]) if len(node.input) > 1 else None
    attributes = _attributes(node)
    if axes is None and (len(node.input) > 1 or attributes.get("noop_with_empty_axes")):
        raise BuildError(f"node {node.name!r} computes its axes, which opset 17 can't: use TensorRT 10 or later")
    lowered = _without(node, "noop_with_empty_axes")
    if axes is not None:
        del lowered.input[1:]
        lowered.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).tolist()))
    return lowered


def _shape(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Takes a part of a shape by Slice: Shape itself can since opset 15, which 8.5's parser need not read."""
    attributes = _attributes(node)
    start, end = attributes.get("start", 0), attributes.get("end")
    whole = helper.make_node("Shape", node.input, node.output, node.name)
    if start == 0 and end is None:
        return [whole]
    (output,) = node.output
    bounds = [
        _constant(graph, f"{output}_start", np.array([start], dtype=np.int64)),
        _constant(graph, f"{output}_end", np.array([np.iinfo(np.int64).max if end is None else end], dtype=np.int64)),
        _constant(graph, f"{output}_axis", np.array([0], dtype=np.int64)),
    ]
    whole.output[0] = f"{output}_whole"
    return [whole, helper.make_node("Slice", [whole.output[0], *bounds], [output], f"{node.name}_part")]


def _layer_normalization(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in FP32."""
    attributes = _attributes(node)
    source, scale, bias = node.input
    (output,) = node.output
    if attributes.get("axis", -1) != -1 or attributes.get("stash_type", TensorProto.FLOAT) != TensorProto.FLOAT:
        raise BuildError(f"node {node.name!r} is a LayerNormalization of another form: use TensorRT 8.6 or later")
    kind = constants[scale].data_type
    epsilon = _constant(graph, f"{output}_epsilon", np.array(attributes.get("epsilon", 1e-5), dtype=np.float32))

    def make(operator: str, inputs: list[str], result: str, **settings: Any) -> onnx.NodeProto:
        return helper.make_node(
            operator, inputs, [f"{output}_{result}"], f"{FP32_PREFIX}{node.name}_{result}", **settings
        )

    def name(result: str) -> str:
        return f"{output}_{result}"

    nodes = []
    if kind != TensorProto.FLOAT:
        for what, inner in ((source, "source"), (scale, "scale"), (bias, "bias")):
            nodes.append(make("Cast", [what], inner, to=TensorProto.FLOAT))
        source, scale, bias = name("source"), name("scale"), name("bias")
    nodes += [
        make("ReduceMean", [source], "mean", axes=[-1], keepdims=1),
        make("Sub", [source, name("mean")], "centred"),
        make("Mul", [name("centred"), name("centred")], "square"),
        make("ReduceMean", [name("square")], "variance", axes=[-1], keepdims=1),
        make("Add", [name("variance"), epsilon], "stabilised"),
        make("Sqrt", [name("stabilised")], "deviation"),
        make("Div", [name("centred"), name("deviation")], "normalised"),
        make("Mul", [name("normalised"), scale], "scaled"),
        make("Add", [name("scaled"), bias], "shifted"),
    ]
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [name("shifted")], [output], f"{node.name}_to_fp16", to=kind))
    else:
        nodes[-1].output[0] = output
    return nodes


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _without(node: onnx.NodeProto, attribute: str) -> onnx.NodeProto:
    attributes = {name: value for name, value in _attributes(node).items() if name != attribute}
    return helper.make_node(node.op_type, node.input, node.output, node.name, **attributes)


def _constant(graph: onnx.GraphProto, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
