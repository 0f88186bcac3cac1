"""Each encoder is served as the graph that suits what runs it, and the manifest says which."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.export.graph_writer import MICROSOFT
from cnclip_builder.repository.graphs import served_graph
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import TOWERS

CPU = ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=8)
GPU = replace(CPU, target="gpu", precision="fp16")


@pytest.mark.parametrize(
    ("serving", "image", "text"),
    [
        (CPU, "plain", "unpadded"),
        (GPU, "fused", "fused"),
        (replace(GPU, accelerator="cuda"), "fused", "fused"),
        (replace(GPU, accelerator="tensorrt"), "plain", "plain"),
        (replace(GPU, platform="tensorrt"), "plain", "plain"),
    ],
)
def test_what_runs_it_decides(tiny_vit: Arch, tiny_resnet: Arch, serving: ServingConfig, image: str, text: str) -> None:
    assert served_graph(serving, tiny_vit, "image") == image
    assert served_graph(serving, tiny_resnet, "image") == "plain"
    for arch in (tiny_vit, tiny_resnet):
        assert served_graph(serving, arch, "text") == text


@pytest.mark.parametrize("changes", [{}, {"precision": "fp32"}, {"accelerator": "tensorrt"}], ids=str)
def test_a_repository_for_a_gpu(
    tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path: Path, changes: dict[str, Any]
) -> None:
    serving = replace(GPU, **changes)
    shutil.copytree(tiny_artefacts.items[0].path.parent, tmp_path / "artefacts" / "tiny-vit")
    build_repository(
        BuildRequest(
            arch=tiny_vit,
            checkpoint=str(tiny_artefacts.checkpoint.file.path),
            serving=serving,
            repository=tmp_path / "repository",
            artefacts=tmp_path / "artefacts",
            download_root=tmp_path,
        )
    )
    record = load_manifest(tmp_path / "repository").models["tiny-vit"]["1"]
    expected = "plain" if "accelerator" in changes else "fused"
    assert record["served_graph"] == dict.fromkeys(TOWERS, expected)
    for tower in TOWERS:
        folder = tmp_path / "repository" / f"tiny-vit-{tower}-encoder" / "1"
        model = onnx.load(folder / "model.onnx")  # with its weights, wherever the folder was moved to
        domains = {node.domain for node in model.graph.node}
        assert domains == ({""} if expected == "plain" else {"", MICROSOFT})
        assert record["served_parity"][f"{tower}-encoder"]["rows"] >= 4
        data = {tensor.data_type for tensor in model.graph.initializer if tensor.dims and tensor.dims[0] > 52}
        half = serving.precision == "fp16"
        assert data == {onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT}
