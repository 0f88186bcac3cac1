"""From an ONNX artefact to the encoder that Triton serves: the same weights, with the edges moved into the graph.

Pixels come in as uint8 `[N, R, R, 3]`, a quarter of the bytes of float32, and are scaled and normalised inside; token
ids come in as int32, the one type that every TensorRT from 8.5 to 11 takes, and stay int32 up to the embedding table;
features come out as they are and L2-normalised, in float32 also where the encoder is FP16. Only the graph is
rewritten: the weights are copied, not exported again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnclip_builder.errors import BuildError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.files import SERVED_FILENAME
from cnclip_builder.export.unpadding import skip_padding
from cnclip_builder.parity.probes import PIXEL_MEAN, PIXEL_STD
from cnclip_builder.tensors import FP32_PREFIX, TENSORS, Tower

_NORM = "feature_norm"


def write_served_encoder(artefact: Artefact, folder: Path, *, without_padding: bool = False) -> Path:
    """Writes `model.onnx` and its weights into a folder.

    Args:
        artefact: the encoder.
        folder: where to; a version folder of a Triton model.
        without_padding: whether a text encoder leaves its texts' padding out, for ONNX Runtime.

    Returns:
        The path of `model.onnx`.
    """
    model = make_served_model(artefact)
    _name_after_weights(model.graph, artefact.identity)
    if without_padding and artefact.tower == "text":
        skip_padding(model.graph)
    served = folder / SERVED_FILENAME
    onnx.save_model(model, served)
    # A copy, not a hard link: onnx refuses weights that have several names, for fear of an attack.
    shutil.copyfile(artefact.weights, folder / artefact.weights.name)
    return served


def _name_after_weights(graph: onnx.GraphProto, identity: str) -> None:
    """Puts what tells the weights into the name of a tensor.

    ONNX Runtime's TensorRT provider keeps engines under a hash of the file's name, the names of inputs and
    initializers, and of every node's outputs (`TRTGenerateId` of its tensorrt_execution_provider_utils.h), and never of
    the weights: a second checkpoint would be served with the first one's engine. The norm's tensor is one that no
    optimiser renames: nothing is fused across it.
    """
    if identity:
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == _NORM:
                        names[index] = f"{_NORM}_{identity}"


def make_served_model(artefact: Artefact) -> onnx.ModelProto:
    """Makes the graph of a served encoder; its weights stay in the artefact's own file."""
    model = onnx.load(artefact.path, load_external_data=False)
    if artefact.tower == "image":
        _take_pixels(model.graph, artefact.arch.resolution)
    else:
        take_int32_ids(model.graph)
    _add_normalised_features(model.graph, artefact.tower, artefact.arch.embedding_size)
    return model


def _take_pixels(graph: onnx.GraphProto, resolution: int) -> None:
    """Puts cn_clip's ToTensor and Normalize before the encoder, in the same float32 steps."""
    names = TENSORS["image"]
    (image,) = graph.input
    batch = image.type.tensor_type.shape.dim[0].dim_param
    constants = {
        "pixel_range": np.array(255, dtype=np.float32),
        "pixel_mean": PIXEL_MEAN.reshape(1, 3, 1, 1),
        "pixel_std": PIXEL_STD.reshape(1, 3, 1, 1),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    # The Cast comes first: TensorRT takes uint8 at a network's edge only, and only to be cast.
    _prepend(
        graph,
        _fp32("Cast", [names.served_input], "pixels_float", to=TensorProto.FLOAT),
        _fp32("Transpose", ["pixels_float"], "pixels_nchw", perm=[0, 3, 1, 2]),
        _fp32("Div", ["pixels_nchw", "pixel_range"], "pixels_scaled"),
        _fp32("Sub", ["pixels_scaled", "pixel_mean"], "pixels_centred"),
        _fp32("Div", ["pixels_centred", "pixel_std"], names.input),
    )
    image.CopyFrom(
        helper.make_tensor_value_info(names.served_input, TensorProto.UINT8, [batch, resolution, resolution, 3])
    )


def take_int32_ids(graph: onnx.GraphProto) -> None:
    """Makes the ids int32, and lets whatever reads them read int32: no int64 is on their way to the embedding table.

    TensorRT 10 gained int64 tensors of its own, and Chinese-CLIP's text plans were wrong under it: ids that arrive as
    one type and are read as another. Numbers that come from shapes (positions, token types) stay int64, as ONNX wants.

    Raises:
        BuildError: an operator reads the ids that is not known to take int32.
    """
    ids = TENSORS["text"].input
    (text,) = graph.input
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if ids not in node.input or node.op_type in ("Gather", "Shape"):
            continue  # both take ids of either type
        other = [name for name in node.input if name != ids]
        if node.op_type != "Equal" or len(other) != 1 or other[0] not in constants:
            raise BuildError(
                f"node {node.name!r} reads token ids by {node.op_type}, not known to take int32: report it"
            )
        narrow = f"{other[0]}_int32"
        value = numpy_helper.to_array(constants[other[0]]).astype(np.int32)
        graph.initializer.append(numpy_helper.from_array(value, narrow))
        node.input[list(node.input).index(other[0])] = narrow
    text.type.tensor_type.elem_type = TensorProto.INT32


def _add_normalised_features(graph: onnx.GraphProto, tower: Tower, embedding_size: int) -> None:
    names = TENSORS[tower]
    (unnormalised,) = graph.output
    batch = unnormalised.type.tensor_type.shape.dim[0].dim_param
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "feature_axis"))
    graph.node.extend(
        [
            _fp32("ReduceL2", [names.unnormalised, "feature_axis"], _NORM),
            _fp32("Div", [names.unnormalised, _NORM], names.normalised),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(names.normalised, TensorProto.FLOAT, [batch, embedding_size]))


def _fp32(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], f"{FP32_PREFIX}{output}", **attributes)


def _prepend(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
