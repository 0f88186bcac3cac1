"""The stage that writes what plans are made from, to be run in a process of its own: naming it costs no onnx."""

from __future__ import annotations

from pathlib import Path

from cnclip_builder.export.artefact import Artefact
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import Edges, PlanJob


def write_plan_job(artefact: Artefact, edges: Edges, profiles: tuple[Profile, ...], folder: Path) -> PlanJob:
    """Writes what a plan is made from; imports onnx and onnxruntime. See `write_plan_sources`."""
    from cnclip_builder.plans.graphs import write_plan_sources

    return write_plan_sources(artefact, edges, profiles, folder)
