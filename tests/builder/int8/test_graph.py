"""The graph of an INT8 encoder: what is quantised, what it computes, and that rows keep to themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.export.check import open_session
from cnclip_builder.int8.graph import find_products, read_weight, write_int8
from cnclip_builder.int8.weights import Float, round_to_nearest
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((32, 24)).astype(np.float32)


def write(path: Path, operator: str, inputs: list[str], weight: Float = WEIGHT) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], "product")],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, path)
    return model


def test_products_of_activations_and_weights(tmp_path: Path) -> None:
    (product,) = find_products(write(tmp_path / "a.onnx", "MatMul", ["x", "weight"]))
    assert (product.activations, product.weight, product.size) == ("x", "weight", 32 * 24)
    for operator, other in (("MatMul", "x"), ("Add", "weight")):
        assert not find_products(write(tmp_path / "b.onnx", operator, ["x", other]))


def test_what_it_computes(tmp_path: Path) -> None:
    model = write(tmp_path / "fp32.onnx", "MatMul", ["x", "weight"])
    (found,) = find_products(model)
    weight = round_to_nearest(read_weight(model, found, tmp_path))
    write_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", {"product": weight})
    x = RNG.standard_normal((5, 32)).astype(np.float32) * np.float32([[1e-6], [1], [1e6], [0], [1]])
    (y,) = open_session(tmp_path / "int8.onnx").run(None, {"x": x})
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-30)
    expected = np.rint(x / largest * 127) / 127 * largest @ (weight.values * weight.scales)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(axis=1, keepdims=True).min())
    for row in (0, 1, 2, 4):
        error = np.linalg.norm(y[row] - x[row] @ WEIGHT)
        assert error < 0.05 * np.linalg.norm(x[row] @ WEIGHT)


def test_the_largest_products_do_not_saturate(tmp_path: Path) -> None:
    even = np.full_like(WEIGHT, 3)
    write(tmp_path / "fp32.onnx", "MatMul", ["x", "weight"], even)
    write_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", {"product": round_to_nearest(even)})
    session = open_session(tmp_path / "int8.onnx")
    for sign in (1, -1):
        x = np.full((2, 32), sign, dtype=np.float32)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], sign * 96, rtol=1e-5)


def test_a_rows_features_do_not_depend_on_its_batch(tiny_artefacts: Artefacts, tmp_path: Path) -> None:
    fp32 = tiny_artefacts.get("image", "fp32").path
    model = onnx.load(fp32, load_external_data=False)
    weights = {item.node: round_to_nearest(read_weight(model, item, fp32.parent)) for item in find_products(model)}
    assert weights
    write_int8(fp32, tmp_path / "int8.onnx", weights)
    session = open_session(tmp_path / "int8.onnx")
    pictures = RNG.standard_normal((4, 3, 32, 32)).astype(np.float32)
    pictures[3] *= 1000  # a range over the whole batch would leave the others nothing
    (together,) = session.run(None, {"image": pictures})
    alone = np.concatenate([session.run(None, {"image": picture[None]})[0] for picture in pictures])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_weights_are_in_one_file_beside_it_and_smaller(tiny_artefacts: Artefacts, tmp_path: Path) -> None:
    fp32 = tiny_artefacts.get("text", "fp32").path
    model = onnx.load(fp32, load_external_data=False)
    weights = {item.node: round_to_nearest(read_weight(model, item, fp32.parent)) for item in find_products(model)}
    for _ in range(2):  # a second one takes the first one's place
        write_int8(fp32, tmp_path / "int8.onnx", weights)
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx", "int8.onnx.extra_file"}
    made = onnx.load(tmp_path / "int8.onnx")
    quantised = sum(weight.values.size for weight in weights.values())
    stored = sum(len(tensor.raw_data) for tensor in made.graph.initializer)
    before = sum(len(tensor.raw_data) for tensor in onnx.load(fp32).graph.initializer)
    assert before - stored > 2.5 * quantised
    assert (tmp_path / "int8.onnx.extra_file").stat().st_size < 1.2 * stored
