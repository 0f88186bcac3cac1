"""From an ONNX artefact to the encoder that Triton serves: the same weights, with the edges moved into the graph.

Pixels come in as uint8 `[N, R, R, 3]`, a quarter of the bytes of float32, and are scaled and normalised inside; token
ids come in as int32, the one type that every TensorRT from 8.5 to 11 takes; features come out as they are and
L2-normalised. Only the graph is rewritten: the weights are copied, not exported again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnclip_builder.arch import Arch, Tower
from cnclip_builder.onnx_files import TENSORS, external_data_of
from cnclip_builder.probes import PIXEL_MEAN, PIXEL_STD

SERVED_FILENAME = "model.onnx"


def write_served_encoder(artefact: Path, arch: Arch, tower: Tower, folder: Path) -> Path:
    """Writes `model.onnx` and its weights into a folder.

    Args:
        artefact: a `.onnx` file of this builder.
        arch: its architecture.
        tower: which encoder it is.
        folder: where to; a version folder of a Triton model.

    Returns:
        The path of `model.onnx`.
    """
    model = onnx.load(artefact, load_external_data=False)
    if tower == "image":
        _take_pixels(model.graph, arch.resolution)
    else:
        _take_int32_ids(model.graph)
    _add_normalised_features(model.graph, tower, arch.embedding_size)
    served = folder / SERVED_FILENAME
    onnx.save_model(model, served)
    weights = external_data_of(artefact)
    if weights.exists():
        # A copy, not a hard link: onnx refuses weights that have several names, for fear of an attack.
        shutil.copyfile(weights, folder / weights.name)
    return served


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
    _prepend(
        graph,
        helper.make_node("Transpose", [names.served_input], ["pixels_nchw"], "pixels_to_nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["pixels_nchw"], ["pixels_float"], "pixels_to_float", to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels_float", "pixel_range"], ["pixels_scaled"], "scale_pixels"),
        helper.make_node("Sub", ["pixels_scaled", "pixel_mean"], ["pixels_centred"], "centre_pixels"),
        helper.make_node("Div", ["pixels_centred", "pixel_std"], [names.input], "normalise_pixels"),
    )
    image.CopyFrom(
        helper.make_tensor_value_info(names.served_input, TensorProto.UINT8, [batch, resolution, resolution, 3])
    )


def _take_int32_ids(graph: onnx.GraphProto) -> None:
    names = TENSORS["text"]
    (text,) = graph.input
    widened = "text_int64"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == names.input:
                node.input[index] = widened
    _prepend(
        graph,
        helper.make_node("Cast", [names.served_input], [widened], "widen_token_ids", to=TensorProto.INT64),
    )
    text.type.tensor_type.elem_type = TensorProto.INT32


def _add_normalised_features(graph: onnx.GraphProto, tower: Tower, embedding_size: int) -> None:
    names = TENSORS[tower]
    (unnormalised,) = graph.output
    batch = unnormalised.type.tensor_type.shape.dim[0].dim_param
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "feature_axis"))
    graph.node.extend(
        [
            helper.make_node("ReduceL2", [names.unnormalised, "feature_axis"], ["feature_norm"], "measure_features"),
            helper.make_node("Div", [names.unnormalised, "feature_norm"], [names.normalised], "normalise_features"),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(names.normalised, TensorProto.FLOAT, [batch, embedding_size]))


def _prepend(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
