"""From ONNX in FP32 to FP16, inputs and outputs left in FP32."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from cnclip_builder.export.files import external_data_of

logger = logging.getLogger(__name__)


def convert_to_fp16(fp32: Path, fp16: Path) -> None:
    """Writes the FP16 twin of an FP32 model.

    Args:
        fp32: the .onnx file to read.
        fp16: the .onnx file to write; its weights go beside it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants too small for FP16, which parity judges
        # A path, not a model: shape inference of a model in memory ends at 2 GB.
        model = convert_float_to_float16(str(fp32), keep_io_types=True)
    del model.graph.value_info[:]
    onnx.save_model(
        model,
        fp16,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=external_data_of(fp16).name,
        size_threshold=1024,
    )
