"""Makes plans: checks what they are made from, builds, proves, and only then gives them their names.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path

from cnclip_builder.errors import MissingRequirementError, PlanError
from cnclip_builder.plans.api import BuildOptions, TensorRT
from cnclip_builder.plans.check import check_plan, read_probes
from cnclip_builder.plans.record import Device, PlanJob, PlanRecord, read_record, sidecar_of, write_record
from cnclip_builder.system.atomic import replacing_file, sha256_of_file

logger = logging.getLogger(__name__)


def make_plan(
    job: PlanJob,
    sources: Path,
    folder: Path,
    tensorrt: TensorRT,
    device: Device | None,
    options: BuildOptions,
    libraries: Mapping[str, str] | None = None,
) -> PlanRecord:
    """Makes a plan, or finds it made already from the same files, with these options, on this GPU, by this TensorRT.

    Args:
        job: what to make.
        sources: the folder of the job's files.
        folder: where the plan, its sidecar and the timing cache go.
        tensorrt: the installed TensorRT.
        device: this machine's GPU.
        options: settings of TensorRT's builder.
        libraries: versions, by name, of those beside TensorRT that the plan needs; from `require_machine`.

    Raises:
        MissingRequirementError: there is no GPU.
        PlanError: a source file is not what the job names, or TensorRT refuses it.
        ParityError: the plan's features are not PyTorch's; the plan is not kept.
    """
    if device is None:
        raise MissingRequirementError("no NVIDIA GPU was found, and a plan is built on the GPU that runs it")
    _check_sources(job, sources, tensorrt.opset)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / job.plan
    reusable = _reusable(job, target, tensorrt, device, options)
    if reusable:
        logger.info("Reusing %s: nothing it rests on has changed", job.plan)
        return reusable
    graph = sources / job.graphs[tensorrt.opset]
    logger.info("Building %s with TensorRT %s on %s; this takes minutes", job.plan, tensorrt.version, device.name)
    started = time.monotonic()
    cache = folder / timing_cache_name(tensorrt.version, device)
    plan = tensorrt.build(graph, job.input, job.profiles, job.precision, options, cache)
    seconds = time.monotonic() - started
    with tensorrt.open(plan) as run:
        parity = check_plan(run, job, read_probes(sources / job.probes))
    sidecar_of(target).unlink(missing_ok=True)  # a sidecar never speaks of another plan
    with replacing_file(target) as partial:
        partial.write_bytes(plan)
    record = PlanRecord(
        plan=job.plan,
        sha256=sha256_of_file(target),
        precision=job.precision,
        opset=tensorrt.opset,
        sources=job.sources(tensorrt.opset),
        profiles=job.profiles,
        input=job.input,
        options=options,
        tensorrt=tensorrt.version,
        device=device,
        build_seconds=round(seconds, 1),
        parity=parity,
        libraries=dict(libraries or {}),
    )
    write_record(target, record)
    logger.info("Proved %s: 1 - cosine <= %.0e (%.0f s)", job.plan, parity["pytorch"]["cosine_distance"], seconds)
    return record


def require_usable(plan: Path, job: PlanJob) -> PlanRecord:
    """Reads a plan's sidecar, and refuses a plan that is damaged or was made for another job.

    Raises:
        PlanError: saying what differs.
    """
    read_record(plan).require_made_from(job)
    return read_whole(plan)


def read_whole(plan: Path) -> PlanRecord:
    """Reads a plan's sidecar, and refuses a plan that is damaged.

    Raises:
        PlanError: it is, or there is no such plan.
    """
    record = read_record(plan)
    if sha256_of_file(plan) != record.sha256:
        raise PlanError(
            f"{plan} is not the plan that its sidecar speaks of, or was cut short on its way: copy it again"
        )
    return record


def timing_cache_name(tensorrt: str, device: Device) -> str:
    """Names the file of measured kernels: TensorRT refuses another version's or GPU's."""
    kind = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-").lower()
    return f"timing.{kind}.sm{device.compute_capability.replace('.', '')}.trt{tensorrt}.cache"


def _reusable(job: PlanJob, plan: Path, tensorrt: TensorRT, device: Device, options: BuildOptions) -> PlanRecord | None:
    try:
        record = require_usable(plan, job)
        record.require_built_with(options)
        record.require_runs_on(tensorrt.version, device)
    except PlanError as reason:
        if plan.exists():
            logger.info("Not reusing %s: %s", plan.name, reason)
        return None
    return record


def _check_sources(job: PlanJob, folder: Path, opset: str) -> None:
    needed = {**job.sources(opset), job.probes: job.files[job.probes]}
    for name, digest in needed.items():
        path = folder / name
        if not path.is_file():
            raise PlanError(f"{path} is missing: copy the whole folder")
        if sha256_of_file(path) != digest:
            raise PlanError(f"{path} is not the file that was written, or was cut short on its way: copy it again")
