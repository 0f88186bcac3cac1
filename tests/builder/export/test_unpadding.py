"""Text encoders without padding: the same features, for every way that padding can lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.errors import BuildError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.check import open_session
from cnclip_builder.export.served import make_served_model, write_served_encoder
from cnclip_builder.export.unpadding import skip_padding
from cnclip_builder.int8.graph import find_products, read_weight, write_int8
from cnclip_builder.int8.weights import round_to_nearest
from onnx import helper

RNG = np.random.default_rng(0)
Ids = npt.NDArray[np.int32]
Encode = Callable[[Ids], list[npt.NDArray[np.float32]]]


def texts(*lengths: int, padded_to: int) -> Ids:
    ids = np.zeros((len(lengths), padded_to), dtype=np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = RNG.integers(100, 8000, length)
    return ids


def encoder(artefact: Artefact, folder: Path, without_padding: bool) -> Encode:
    folder.mkdir()
    session = open_session(write_served_encoder(artefact, folder, without_padding=without_padding))
    return lambda ids: session.run(None, {"text": ids})


# ONNX Runtime rounds FP16 at other places of another graph.
TOLERANCES = {"fp32": 1e-6, "fp16": 5e-3, "int8": 1e-6}


@pytest.fixture(params=TOLERANCES)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def encoders(precision: str, tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> tuple[Encode, Encode]:
    """With padding, and without."""
    if precision == "int8":
        artefact = Artefact(tiny_vit, "text", "int8", tmp_path)
        fp32 = tiny_artefacts.get("text", "fp32").path
        model = onnx.load(fp32, load_external_data=False)
        weights = {item.node: round_to_nearest(read_weight(model, item, fp32.parent)) for item in find_products(model)}
        first = next(iter(weights))  # one with a smoothed input, which is an operation of its own
        weights[first] = type(weights[first])(
            **{**vars(weights[first]), "smoothing": np.full(len(weights[first].values), 2, dtype=np.float32)}
        )
        write_int8(fp32, artefact.path, weights)
    else:
        artefact = tiny_artefacts.get("text", precision)  # type: ignore[arg-type]
    return tuple(encoder(artefact, tmp_path / str(skips), skips) for skips in (False, True))  # type: ignore[return-value]


def require_same(encoders: tuple[Encode, Encode], ids: Ids, tolerance: float) -> None:
    for padded, skipped in zip(*(encode(ids) for encode in encoders), strict=True):
        np.testing.assert_allclose(skipped, padded, atol=tolerance)


@pytest.mark.parametrize(
    "ids",
    [
        texts(3, 52, 17, 31, padded_to=52),
        texts(3, padded_to=8),
        texts(8, 8, padded_to=8),  # no padding at all
        texts(5, 4, padded_to=52),  # a whole block of it
        texts(1, padded_to=1),
    ],
    ids=lambda ids: f"{len(ids)} of {ids.shape[1]}",
)
def test_the_same_features(encoders: tuple[Encode, Encode], precision: str, ids: Ids) -> None:
    require_same(encoders, ids, TOLERANCES[precision])


def test_a_hole_in_a_text(encoders: tuple[Encode, Encode], precision: str) -> None:
    ids = texts(20, 20, padded_to=24)
    ids[0, 5:9] = ids[1, 0] = 0
    require_same(encoders, ids, TOLERANCES[precision])


def test_nothing_but_padding_is_no_error(encoders: tuple[Encode, Encode]) -> None:
    _, without = encoders
    alone = texts(9, padded_to=16)
    for ids in (np.zeros((2, 16), np.int32), np.concatenate([np.zeros((1, 16), np.int32), alone])):
        raw, unit = without(ids)
        assert np.isfinite(raw).all()
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(raw[1:], without(alone)[0], rtol=1e-5, atol=1e-6)


def test_neither_the_batch_nor_the_length_changes_a_text(encoders: tuple[Encode, Encode], precision: str) -> None:
    _, without = encoders
    ids = texts(7, 52, 30, padded_to=52)
    together = without(ids)[0]
    atol = TOLERANCES[precision]
    np.testing.assert_allclose(together[0], without(ids[:1, :8])[0][0], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(together[2], without(ids[2:, :32])[0][0], rtol=1e-5, atol=atol)


def test_what_is_computed_grows_with_the_tokens(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    """The product after the first block's GELU has a row for each token, and attention is as wide as the longest text."""
    artefact = tiny_artefacts.get("text", "fp32")
    model = make_served_model(artefact)
    skip_padding(model.graph)
    narrowing = {tensor.name for tensor in model.graph.initializer if list(tensor.dims) == [64, 32]}
    product = next(node for node in model.graph.node if narrowing & set(node.input))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    for node in (product, softmax):
        model.graph.output.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    onnx.save_model(model, tmp_path / "model.onnx")
    shutil.copy(artefact.weights, tmp_path)
    *_, rows, attention = open_session(tmp_path / "model.onnx").run(None, {"text": texts(3, 31, 17, padded_to=52)})
    assert rows.shape[0] == 3 + 31 + 17
    assert attention.shape[-2:] == (31, 31)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Transpose", ["hidden"], ["features"], "turn")], "node 'turn', a Transpose, can't leave"),
        ([helper.make_node("Slice", ["hidden", "one", "two"], ["features"], "second")], "node 'second', a Slice"),
        ([helper.make_node("Add", ["hidden", "table"], ["features"], "grid")], "node 'grid', a Add, can't leave"),
        ([helper.make_node("Erf", ["hidden"], ["features"], "all")], "not those of its class token alone"),
        ([helper.make_node("Erf", ["nothing"], ["features"], "lost")], "node 'lost' reads a tensor that nothing makes"),
    ],
)
def test_another_graph_is_refused(nodes: list[onnx.NodeProto], message: str) -> None:
    def constant(name: str, value: Any) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(value), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "text"], ["embedded"]),
            helper.make_node("LayerNormalization", ["embedded", "scale"], ["hidden"]),
            *nodes,
        ],
        "another",
        [helper.make_tensor_value_info("text", onnx.TensorProto.INT32, ["batch", "length"])],
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None)],
        [
            constant("table", np.zeros((9, 4, 4), np.float32)),
            constant("scale", np.ones(4, np.float32)),
            constant("one", [1]),
            constant("two", [2]),
        ],
    )
    with pytest.raises(BuildError, match=message):
        skip_padding(graph)
