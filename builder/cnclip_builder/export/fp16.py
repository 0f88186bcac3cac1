"""From ONNX in FP32 to FP16, inputs and outputs left in FP32."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.shape_inference import infer_shapes
from onnxruntime.transformers.float16 import convert_float_to_float16

from cnclip_builder.export.files import external_data_of
from cnclip_builder.export.weights_file import WeightsFile

_FP16 = np.finfo(np.float16)


def convert_to_fp16(fp32: Path, fp16: Path) -> None:
    """Writes the FP16 twin of an FP32 model.

    ONNX Runtime's converter decides what becomes FP16, and is shown tensors without their elements for that. These are
    rounded here, one tensor in memory at a time, to the same numbers.

    Args:
        fp32: the .onnx file to read.
        fp16: the .onnx file to write; its weights go beside it.
    """
    model = infer_shapes(onnx.load(fp32, load_external_data=False))
    weights = {tensor.name: _taken_out(tensor) for tensor in model.graph.initializer if tensor.external_data}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants too small for FP16, which parity judges
        model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    del model.graph.value_info[:]
    with WeightsFile(external_data_of(fp16)) as file:
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                # Not before: it is mapped from the file, and given back after this round.
                value = numpy_helper.to_array(weights[tensor.name], str(fp32.parent))
                is_fp16 = tensor.data_type == TensorProto.FLOAT16
                tensor.CopyFrom(file.add(tensor.name, round_to_fp16(value) if is_fp16 else value))
    onnx.save_model(model, fp16)


def _taken_out(tensor: TensorProto) -> TensorProto:
    """Leaves nothing of a tensor but its name and type; gives what it was."""
    whole = TensorProto()
    whole.CopyFrom(tensor)
    tensor.CopyFrom(TensorProto(name=whole.name, data_type=whole.data_type, dims=[0]))
    return whole


def round_to_fp16(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Rounds to FP16 as ONNX Runtime's converter does: no number becomes zero, and none infinite."""
    with np.errstate(over="ignore", under="ignore"):
        rounded: npt.NDArray[Any] = value.astype(np.float16)
    lost = (rounded == 0) & (value != 0)
    rounded[lost] = np.copysign(_FP16.smallest_subnormal, value[lost])
    too_large = np.isinf(rounded) & np.isfinite(value)
    rounded[too_large] = np.copysign(_FP16.max, value[too_large])
    return rounded
