"""What stages run in a process of their own. The heavy libraries are imported inside, so that naming one is free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch, Tower
from cnclip_builder.checkpoint.sources import CheckpointFile, Hub
from cnclip_builder.export.files import ExportJob
from cnclip_builder.parity.distance import Parity, Precision
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import PlanJob


@dataclass(frozen=True)
class CheckpointFacts:
    """What later stages need to know of a checkpoint.

    Attributes:
        file: where it is and where it came from.
        sha256: hex digest of the file.
        logit_scale: the factor on cosines, already exponentiated.
        fp32_bytes: size of its weights in FP32, by encoder.
    """

    file: CheckpointFile
    sha256: str
    logit_scale: float
    fp32_bytes: dict[Tower, int]


def open_checkpoint(source: str | None, arch: Arch, download_root: Path, hub: Hub) -> CheckpointFacts:
    """Fetches a checkpoint, loads it and sums it up; imports torch. See `fetch_checkpoint` and `load_checkpoint`."""
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.sources import fetch_checkpoint

    file = fetch_checkpoint(source, arch, download_root, hub)
    checkpoint = load_checkpoint(file.path, arch)
    sizes: dict[Tower, int] = {"image": 0, "text": 0}
    for name, value in checkpoint.state_dict.items():
        sizes["image" if name.startswith("visual.") else "text"] += 4 * value.numel()
    return CheckpointFacts(file, checkpoint.sha256, checkpoint.logit_scale, sizes)


def export_to_onnx(job: ExportJob) -> None:
    """Exports an encoder in FP32; imports torch. See `export_tower`."""
    from cnclip_builder.export.export import export_tower

    export_tower(job)


def finish_artefact(made: Path, fp32: Path, reference: Path, arch: Arch, tower: Tower, precision: Precision) -> Parity:
    """Converts to FP16 if that is asked for, and proves the artefact; imports onnx and onnxruntime.

    Args:
        made: the .onnx file to prove, and for FP16 to write first.
        fp32: its FP32 twin.
        reference: PyTorch's features of the probes, .npy.
        arch: the architecture.
        tower: which encoder.
        precision: of `made`.

    Raises:
        ParityError: it differs from PyTorch beyond its tolerance.
    """
    import numpy as np

    from cnclip_builder.export.check import check_artefact

    if precision == "fp16":
        from cnclip_builder.export.fp16 import convert_to_fp16

        convert_to_fp16(fp32, made)
    return check_artefact(made, arch, tower, precision, np.load(reference))


def make_int8_artefact(
    made: Path, fp32: Path, reference: Path, arch: Arch, tower: Tower, least_speed_up: float
) -> tuple[Parity, dict[str, Any]]:
    """Converts to INT8 and proves the artefact; imports onnx and onnxruntime.

    Args:
        made: the .onnx file to write.
        fp32: its FP32 twin.
        reference: PyTorch's features of the probes, .npy.
        arch: the architecture.
        tower: which encoder.
        least_speed_up: how many times FP32's speed it must reach.

    Returns:
        The parity with PyTorch on the probes, and an `Int8Report` as a dictionary.

    Raises:
        SlowerError: it does not reach that speed.
        ParityError: no choice of products in FP32 makes it hold its tolerance.
    """
    from dataclasses import asdict

    from cnclip_builder.int8.convert import convert_to_int8

    report = convert_to_int8(fp32, made, arch, tower, least_speed_up=least_speed_up)
    return finish_artefact(made, fp32, reference, arch, tower, "int8"), asdict(report)


def write_served(
    artefact: Path,
    reference: Path,
    arch: Arch,
    tower: Tower,
    precision: Precision,
    folder: Path,
    *,
    without_padding: bool,
) -> Parity:
    """Writes a served encoder into its version folder and proves it; imports onnx and onnxruntime.

    See `write_served_encoder`.

    Raises:
        ParityError: its features differ from PyTorch's beyond the tolerance.
    """
    import numpy as np

    from cnclip_builder.export.check import check_served_encoder
    from cnclip_builder.export.served import write_served_encoder

    served = write_served_encoder(artefact, arch, tower, folder, without_padding=without_padding)
    return check_served_encoder(served, arch, tower, precision, np.load(reference))


def write_plan_job(
    artefact: Path,
    reference: Path,
    arch: Arch,
    tower: Tower,
    precision: Precision,
    edges: str,
    profiles: tuple[Profile, ...],
    folder: Path,
) -> PlanJob:
    """Writes what a plan is made from; imports onnx and onnxruntime. See `write_plan_sources`."""
    from cnclip_builder.plans.graphs import write_plan_sources

    return write_plan_sources(artefact, reference, arch, tower, precision, edges, profiles, folder)  # type: ignore[arg-type]
