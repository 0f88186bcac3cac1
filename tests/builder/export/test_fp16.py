"""The FP16 twin is what ONNX Runtime's converter makes of the whole model, to the byte."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.export.fp16 import convert_to_fp16, round_to_fp16
from cnclip_builder.tensors import TOWERS, Tower
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16, convert_np_to_float16

EDGES = [
    0.0,
    -0.0,
    1e-45,
    -1e-9,
    2.9e-8,
    3e-8,
    5.9604e-8,
    6.0e-8,
    1.0,
    65504,
    65519,
    65520,
    -7e4,
    3e38,
    np.inf,
    -np.inf,
]


@pytest.mark.parametrize("tower", TOWERS)
def test_equals_the_converter_on_a_whole_model(tiny_artefacts: Artefacts, tmp_path: Path, tower: Tower) -> None:
    fp32 = tiny_artefacts.get(tower, "fp32").path
    convert_to_fp16(fp32, tmp_path / "new.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = convert_float_to_float16(str(fp32), keep_io_types=True)
    made = onnx.load(tmp_path / "new.onnx")
    for ours, theirs in ((made.graph.node, whole.graph.node), (made.graph.input, whole.graph.input)):
        assert [item.SerializeToString() for item in ours] == [item.SerializeToString() for item in theirs]
    assert len(made.graph.initializer) == len(whole.graph.initializer) > 20
    for ours, theirs in zip(made.graph.initializer, whole.graph.initializer, strict=True):
        assert (ours.name, ours.data_type, ours.dims) == (theirs.name, theirs.data_type, theirs.dims)
        assert numpy_helper.to_array(ours).tobytes() == numpy_helper.to_array(theirs).tobytes()
    kept = onnx.load(tmp_path / "new.onnx", load_external_data=False).graph.initializer
    large = [tensor for tensor in kept if tensor.external_data]
    assert large
    assert not any(
        int(entry.value) % 4096 for tensor in large for entry in tensor.external_data if entry.key == "offset"
    )


def test_rounds_the_edges_as_the_converter() -> None:
    values = np.array(EDGES, dtype=np.float32)
    with np.errstate(all="ignore"):
        expected = convert_np_to_float16(values)
    assert round_to_fp16(values).tobytes() == expected.tobytes()
    assert not np.isinf(round_to_fp16(values)[:-2]).any()


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False)))
def test_rounds_any_number_as_the_converter(values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = convert_np_to_float16(values)
    assert round_to_fp16(values).tobytes() == expected.tobytes()
