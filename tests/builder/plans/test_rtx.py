"""Both encoders' ONNX files parse and build in TensorRT-RTX, which is not TensorRT but has its parser; see rtx_build."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.plans.here import PlanSettings, write_jobs_of
from cnclip_builder.plans.record import read_jobs, write_jobs
from cnclip_builder.tensors import PRECISIONS, TOWERS

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None
    or importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: make test-rtx installs it",
)


def write(artefacts: Artefacts, arch: Arch, folder: Path, edges: str = "served", batch: int = 64) -> None:
    jobs = []
    for precision in PRECISIONS:
        settings = PlanSettings(max_batch_size=batch, context_length=52)
        jobs += write_jobs_of(artefacts, TOWERS, precision, edges, settings, folder).values()
    write_jobs(folder, tuple(jobs))


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("rtx_build.py")
    return subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=900, check=False
    )


def built(folder: Path) -> dict[str, Any]:
    result = build(folder)
    assert result.returncode == 0, result.stderr[-3000:]
    report: dict[str, Any] = json.loads(result.stdout)  # and nothing else is on stdout
    return report


def expected(slug: str, edges: str) -> set[str]:
    suffix = ".served" if edges == "served" else ""
    return {
        f"{slug}.{part}.{precision}{suffix}.trt opset {opset}"
        for part in ("img", "txt")
        for precision in PRECISIONS
        for opset in ("16", "17")
    }


@pytest.mark.parametrize("edges", ["served", "cn_clip"])
def test_a_tiny_vit(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, edges: str) -> None:
    write(tiny_artefacts, tiny_vit, tmp_path, edges)
    report = built(tmp_path)
    assert report["strongly_typed"]
    assert set(report["built"]) == expected("tiny-vit", edges)
    assert (tmp_path / "timing.cache").exists()


def test_the_demo(tmp_path: Path) -> None:
    demo = get_arch(str(ROOT / "examples" / "demo" / "demo.json"))
    artefacts = build_artefacts(
        demo,
        str(ROOT / "examples" / "demo" / "clip_cn_demo.pt"),
        tmp_path / "artefacts",
        towers=TOWERS,
        precisions=PRECISIONS,
        download_root=tmp_path,
    )
    (tmp_path / "jobs").mkdir()
    write(artefacts, demo, tmp_path / "jobs")
    assert set(built(tmp_path / "jobs")["built"]) == expected("demo", "served")


def test_a_graph_with_int64_ids_is_refused(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    """cn_clip's own graph, whose ids are int64, does not get past the check of the input."""
    write(tiny_artefacts, tiny_vit, tmp_path, "cn_clip")
    job = next(job for job in read_jobs(tmp_path) if job.tower == "text")
    write_jobs(tmp_path, (job,))
    onnx.save_model(onnx.load(tiny_artefacts.get("text", job.precision).path), tmp_path / job.graphs["17"])  # type: ignore[arg-type]
    result = build(tmp_path)
    assert result.returncode != 0
    assert "input 'text' arrives in TensorRT as DataType.INT64, not DataType.INT32" in result.stderr


def test_a_graph_that_is_none(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    write(tiny_artefacts, tiny_vit, tmp_path)
    job = read_jobs(tmp_path)[0]
    write_jobs(tmp_path, (job,))
    (tmp_path / job.graphs["17"]).write_bytes(b"cut short")
    result = build(tmp_path)
    assert result.returncode != 0
    assert "PlanError: TensorRT 1.7.1.116 can't build" in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["ViT-B-16", "RN50"])
def test_official_archs(name: str, tmp_path: Path) -> None:
    arch = get_arch(name)
    artefacts = build_artefacts(
        arch, "random:0", tmp_path / "artefacts", towers=TOWERS, precisions=PRECISIONS, download_root=tmp_path
    )
    (tmp_path / "jobs").mkdir()
    write(artefacts, arch, tmp_path / "jobs")
    assert set(built(tmp_path / "jobs")["built"]) == expected(arch.slug, "served")
