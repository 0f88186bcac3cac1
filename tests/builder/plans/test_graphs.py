"""The ONNX files that plans are made from: what TensorRT's parsers may meet in them, and that nothing else changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.errors import BuildError, SettingError
from cnclip_builder.export.served import take_int32_ids
from cnclip_builder.plans.graphs import write_plan_sources
from cnclip_builder.plans.lowering import lower_opset
from cnclip_builder.plans.profiles import Profile, default_profiles
from cnclip_builder.plans.record import Edges, PlanJob
from cnclip_builder.tensors import FP32_PREFIX, PRECISIONS, TOWERS, Precision, Tower
from onnx import TensorProto, helper, numpy_helper

EDGES: tuple[Edges, ...] = ("served", "cn_clip")


def write(
    artefacts: Artefacts, folder: Path, tower: Tower, precision: Precision = "fp16", edges: Edges = "served"
) -> PlanJob:
    artefact = artefacts.get(tower, precision)
    profiles = default_profiles(8, 52 if tower == "text" else None)
    return write_plan_sources(artefact, edges, profiles, folder)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("edges", EDGES)
def test_opsets_operators_and_types(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, tower: Tower, precision: Precision, edges: Edges
) -> None:
    job = write(tiny_artefacts, tmp_path, tower, precision, edges)
    normalisations = {}
    for opset, name in job.graphs.items():
        model = onnx.load(tmp_path / name)
        onnx.checker.check_model(model)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", int(opset))]
        operators = [node.op_type for node in model.graph.node]
        normalisations[opset] = operators.count("LayerNormalization")
        for node in model.graph.node:
            since = onnx.defs.get_schema(node.op_type, 18).since_version
            assert since <= int(opset) or node.op_type in ("ReduceMean", "ReduceL2", "Split")
            assert opset == "17" or node.op_type != "Shape" or not node.attribute
        (tensor,) = model.graph.input
        kind = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}[job.input.dtype]
        assert (tensor.name, tensor.type.tensor_type.elem_type) == (job.input.name, kind)
    assert normalisations["16"] == 0
    assert normalisations["17"] > 0


@pytest.mark.parametrize("edges", EDGES)
def test_no_int64_is_on_the_ids_way(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, edges: str) -> None:
    """Chinese-CLIP's text plans are wrong under TensorRT 10 for int64 ids (cosine 0.68 to 0.79 was reported)."""
    job = write(tiny_artefacts, tmp_path, "text", "fp16", edges)
    for name in job.graphs.values():
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / name)).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})
        kinds["text"] = TensorProto.INT32
        assert graph.input[0].type.tensor_type.elem_type == TensorProto.INT32
        readers = [node for node in graph.node if "text" in node.input]
        assert {node.op_type for node in readers} == {"Gather", "Equal", "Shape"}
        for node in readers:
            # The embedding table is read by the ids themselves, and they are compared with int32.
            other = [kinds[tensor] for tensor in node.input if tensor != "text"]
            assert other == {"Gather": [TensorProto.FLOAT16], "Equal": [TensorProto.INT32], "Shape": []}[node.op_type]
        # No cast to int64 is left: what is int64 was computed from shapes.
        assert not [
            node
            for node in graph.node
            if node.op_type == "Cast" and helper.get_attribute_value(node.attribute[0]) == TensorProto.INT64
        ]


def test_pixels_are_cast_before_anything_else(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    job = write(tiny_artefacts, tmp_path, "image")
    graph = onnx.load(tmp_path / job.graphs["16"]).graph
    (reader,) = [node for node in graph.node if "pixels" in node.input]
    assert (reader.op_type, helper.get_attribute_value(reader.attribute[0])) == ("Cast", TensorProto.FLOAT)


@pytest.mark.parametrize("tower", TOWERS)
def test_what_stays_in_fp32_in_an_fp16_encoder(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, tower: Tower
) -> None:
    job = write(tiny_artefacts, tmp_path, tower)
    for opset, name in job.graphs.items():
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / name)).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
        held = [node for node in graph.node if node.name.startswith(FP32_PREFIX)]
        assert {kinds[output] for node in held for output in node.output} == {TensorProto.FLOAT}
        operators = {node.op_type for node in held}
        assert {"ReduceL2", "Div"} <= operators
        assert (opset == "16") == ({"Sqrt", "ReduceMean"} <= operators)
        for node in graph.node:
            if node.op_type == "LayerNormalization":
                # The type of its sums, whatever the type around it.
                assert {a.name: a.i for a in node.attribute}["stash_type"] == TensorProto.FLOAT
            if node.op_type == "MatMul":
                assert kinds[node.output[0]] == TensorProto.FLOAT16


def test_names_sources_and_shared_weights(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    served = write(tiny_artefacts, tmp_path, "image")
    plain = write(tiny_artefacts, tmp_path, "image", edges="cn_clip")
    assert (served.plan, plain.plan) == ("tiny-vit.img.fp16.served.trt", "tiny-vit.img.fp16.trt")
    assert (served.normalised, plain.normalised) == ("image_features", None)
    assert (plain.input.name, plain.input.dtype, plain.input.axes) == ("image", "float32", ("batch", 3, 32, 32))
    weights = "tiny-vit.img.fp16.onnx.extra_file"
    assert set(served.sources("16")) == {"tiny-vit.img.fp16.served.opset16.onnx", weights}
    assert PlanJob.from_dict(served.as_dict()) == served
    folder = tmp_path / "beside"
    folder.mkdir()
    artefact = tiny_artefacts.get("image", "fp16")
    for file in (*artefact.folder.glob(artefact.name + "*"), artefact.reference):
        shutil.copy(file, folder)
    before = (folder / weights).stat().st_ino
    write_plan_sources(replace(artefact, folder=folder), "served", default_profiles(4), folder)
    assert (folder / weights).stat().st_ino == before


def test_a_profile_that_does_not_fit(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    artefact = tiny_artefacts.get("image", "fp16")
    wrong = (Profile.parse("batch=1:2:4,length=3:20:52"),)
    with pytest.raises(SettingError, match="its axes that vary are 'batch'"):
        write_plan_sources(artefact, "served", wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_reader_of_ids_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Abs", ["text"], ["y"], "odd")],
        "g",
        [helper.make_tensor_value_info("text", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", "length"])],
    )
    with pytest.raises(BuildError, match="node 'odd' reads token ids by Abs"):
        take_int32_ids(graph)


def small_model(nodes: list[Any], outputs: list[str], **constants: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 8])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("opset", [17, 16])
@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        [helper.make_node("ReduceL2", ["x", "axes"], ["y"])],
        [helper.make_node("Split", ["x", "parts"], ["a", "y"], axis=1)],
        [helper.make_node("Shape", ["x"], ["y"], start=0, end=1)],
        [helper.make_node("Shape", ["x"], ["y"], start=1, end=2)],
        [helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], epsilon=1e-12)],
    ],
    ids=lambda nodes: f"{nodes[0].op_type} {[a.name for a in nodes[0].attribute]}",
)
def test_lowering_changes_no_value(nodes: list[Any], opset: int) -> None:
    rng = np.random.default_rng(0)
    scale, bias = rng.normal(size=(2, 8)).astype(np.float32)
    axes, parts = np.array([1]), np.array([2, 4])
    model = small_model(nodes, ["y"], axes=axes, parts=parts, scale=scale, bias=bias)
    x = {"x": rng.normal(size=(3, 6, 8)).astype(np.float32) * 50}

    def run() -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], x)

    expected = run()
    lower_opset(model, opset)
    assert model.opset_import[0].version == opset
    np.testing.assert_allclose(run()[0], expected[0], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_lowered_is_refused() -> None:
    pad = small_model([helper.make_node("Mish", ["x"], ["y"], "new")], ["y"])
    with pytest.raises(BuildError, match="node 'new' is a Mish of opset 18, which opset 17 lacks"):
        lower_opset(pad, 17)
