"""Served encoders of two checkpoints differ in what ONNX Runtime's TensorRT provider names an engine by."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.artefacts.record import ProvedArtefact
from cnclip_builder.export.served import write_served_encoder
from cnclip_builder.tensors import PRECISIONS, TOWERS, Precision, Tower


def engine_names(model: Path, level: onnxruntime.GraphOptimizationLevel) -> tuple[str, ...]:
    """What `TRTGenerateId` hashes of a graph, after the optimisers that run before a provider sees it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3  # it warns that what is written holds for this machine
    options.optimized_model_filepath = str(model.with_name("optimised.onnx"))
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    inputs = [tensor.name for tensor in (*graph.input, *graph.initializer)]
    return (model.name, *inputs, *(name for node in graph.node for name in node.output))


@pytest.fixture(scope="module")
def other_artefacts(tiny_vit: Arch, tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    root = tmp_path_factory.mktemp("other")
    return build_artefacts(tiny_vit, "random:9", root / "a", towers=TOWERS, precisions=PRECISIONS, download_root=root)


def served(artefact: ProvedArtefact, folder: Path) -> Path:
    folder.mkdir()
    return write_served_encoder(artefact, folder)


@pytest.mark.parametrize(
    "level", [onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL]
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tower", TOWERS)
def test_engines_of_two_checkpoints_have_two_names(
    tiny_artefacts: Artefacts,
    other_artefacts: Artefacts,
    tmp_path: Path,
    tower: Tower,
    precision: Precision,
    level: onnxruntime.GraphOptimizationLevel,
) -> None:
    one, two = tiny_artefacts.get(tower, precision), other_artefacts.get(tower, precision)
    assert one.identity != two.identity
    names = [engine_names(served(one, tmp_path / "one"), level), engine_names(served(two, tmp_path / "two"), level)]
    assert f"feature_norm_{one.identity}" in names[0]
    assert names[0] != names[1]
    # And nothing else makes them differ: they are the same encoder.
    assert len(names[0]) == len(names[1])
    assert engine_names(served(one, tmp_path / "again"), level) == names[0]
