"""The graph of an INT8 encoder: which products can be quantised, and how one looks in ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from cnclip_builder.export.files import drop_unread, external_data_of
from cnclip_builder.int8.weights import ACTIVATION_STEPS, Int8Weight

_CONTRIB = "com.microsoft"
_AXIS, _STEP, _ZERO, _LEAST = "int8_row_axis", "int8_row_step", "int8_row_zero", "int8_least_range"


@dataclass(frozen=True)
class Product:
    """A matrix product of activations and constant weights.

    Attributes:
        node: the node's name.
        activations: the tensor that is multiplied, `[..., K]`.
        weight: the initializer's name, `[K, N]`.
        size: K * N, what it costs per token.
    """

    node: str
    activations: str
    weight: str
    size: int


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Lists what can be quantised, in the graph's order: nearly all of a transformer's work.

    Attention's own products have no constant weights, and convolutions were slower in INT8 on x86: both stay in FP32.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            activations, weight = node.input
            products.append(Product(node.name, activations, weight, math.prod(constants[weight].dims)))
    return products


def read_weight(model: onnx.ModelProto, product: Product, folder: Path) -> npt.NDArray[np.float32]:
    """Reads a product's weights, `[K, N]`, from the file that is in this folder."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == product.weight)
    weight: npt.NDArray[np.float32] = numpy_helper.to_array(tensor, str(folder))
    return weight


def write_int8(fp32: Path, int8: Path, weights: Mapping[str, Int8Weight]) -> None:
    """Writes an encoder in which some products are in INT8.

    Args:
        fp32: the .onnx file to read.
        int8: the .onnx file to write; its weights go beside it.
        weights: by node name; the other products stay as they are.
    """
    model = onnx.load(fp32, load_external_data=False)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    quantised: dict[str, tuple[str, str]] = {}
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1], dtype=np.int64), _AXIS),
            numpy_helper.from_array(np.array(1 / ACTIVATION_STEPS, dtype=np.float32), _STEP),
            numpy_helper.from_array(np.array(128, dtype=np.uint8), _ZERO),
            numpy_helper.from_array(np.array(1e-30, dtype=np.float32), _LEAST),
        ]
    )
    for node in graph.node:
        if node.name in weights:
            nodes.extend(_int8_product(graph, node, weights[node.name], quantised))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)
    load_external_data_for_model(model, str(fp32.parent))
    model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    external_data_of(int8).unlink(missing_ok=True)  # onnx appends to it
    onnx.save_model(
        model,
        int8,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=external_data_of(int8).name,
        size_threshold=1024,
    )


def _int8_product(
    graph: onnx.GraphProto, node: onnx.NodeProto, weight: Int8Weight, quantised: dict[str, tuple[str, str]]
) -> list[onnx.NodeProto]:
    """The nodes that take a product's place.

    Args:
        graph: gets the constants.
        node: the product in FP32.
        weight: its weights.
        quantised: by tensor, the INT8 rows and their ranges that were made already: products that share an input
            (BERT's query, key and value) share these.
    """
    prefix = f"{node.name}_int8"
    (output,) = node.output
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: npt.NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{prefix}_{name}"))
        return f"{prefix}_{name}"

    def add(kind: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], f"{name}_node", domain=domain, **attributes))
        return name

    tensor = node.input[0]
    if weight.smoothing is not None:
        tensor = add("Mul", [tensor, constant("smoothing", 1 / weight.smoothing)], f"{prefix}_smooth")
    if tensor not in quantised:
        magnitudes = add("Abs", [tensor], f"{prefix}_magnitudes")
        largest = add("ReduceMax", [magnitudes, _AXIS], f"{prefix}_largest", keepdims=1)
        ranges = add("Max", [largest, _LEAST], f"{prefix}_ranges")  # a row of zeros would be divided by zero
        unit = add("Div", [tensor, ranges], f"{prefix}_unit")
        quantised[tensor] = add("QuantizeLinear", [unit, _STEP, _ZERO], f"{prefix}_rows"), ranges
    rows, ranges = quantised[tensor]
    zeros = np.zeros(weight.values.shape[1], dtype=np.int8)
    product = add(
        "MatMulIntegerToFloat",
        [
            *(rows, constant("weight", weight.values)),
            *(_STEP, constant("scales", weight.scales)),
            *(_ZERO, constant("zeros", zeros)),
        ],
        f"{prefix}_product",
        _CONTRIB,
    )
    add("Mul", [product, ranges], output)
    return nodes
