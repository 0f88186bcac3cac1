"""The stage that writes what plans are made from, to be run in a process of its own: naming it costs no onnx."""

from __future__ import annotations

from pathlib import Path

from cnclip_builder.export.artefact import Artefact
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import Edges, PlanJob


def plan_name(artefact: Artefact, edges: Edges) -> str:
    """Names a plan as cn_clip's onnx_to_tensorrt.py does, "vit-b-16.img.fp16.trt", or with ".served" before its end."""
    stem = artefact.name.removesuffix(".onnx")
    return f"{stem}.served.trt" if edges == "served" else f"{stem}.trt"


def write_plan_job(artefact: Artefact, edges: Edges, profiles: tuple[Profile, ...], folder: Path) -> PlanJob:
    """Writes what a plan is made from; imports onnx and onnxruntime. See `write_plan_sources`."""
    from cnclip_builder.plans.graphs import write_plan_sources

    return write_plan_sources(artefact, edges, profiles, folder)
