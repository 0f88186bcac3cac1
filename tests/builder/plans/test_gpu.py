"""Real plans on a real GPU: built, proved, reused, and faster to build again. Skipped where there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.plans.device import current_device
from cnclip_builder.plans.here import PlanSettings, build_plans, write_jobs_of
from cnclip_builder.plans.record import read_record
from cnclip_builder.tensors import PRECISIONS, TOWERS, Precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        current_device() is None or importlib.util.find_spec("tensorrt") is None,
        reason="needs an NVIDIA GPU and TensorRT's Python module",
    ),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("edges", ["served", "cn_clip"])
def test_plans_are_pytorchs(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, precision: Precision, edges: str
) -> None:
    settings = PlanSettings(max_batch_size=8, context_length=52)
    jobs = write_jobs_of(tiny_artefacts, TOWERS, precision, edges, settings, tmp_path)
    plans = build_plans(jobs, tmp_path, settings.options)
    for tower, plan in plans.items():
        record = read_record(plan.path)
        record.require_made_from(jobs[tower])
        assert record.device == current_device()
        assert record.parity["pytorch"]["cosine_distance"] <= (1e-3 if precision == "fp16" else 1e-6)
    before = {plan.path: plan.path.stat().st_mtime_ns for plan in plans.values()}
    build_plans(jobs, tmp_path, settings.options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(tmp_path.glob("timing.*.cache"))
