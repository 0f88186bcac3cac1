"""Plans of a checkpoint's encoders: what they are made from is written here, and they are made here or elsewhere."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.errors import MissingRequirementError, PlanError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.files import served_input
from cnclip_builder.plans.api import BuildOptions, load_tensorrt
from cnclip_builder.plans.device import current_device
from cnclip_builder.plans.make import make_plan, read_whole, require_usable
from cnclip_builder.plans.profiles import Profile, default_profiles
from cnclip_builder.plans.record import Edges, PlanJob, PlanRecord
from cnclip_builder.plans.requirements import require_machine
from cnclip_builder.plans.stage import plan_name, write_plan_job
from cnclip_builder.system.gpu import missing_gpu
from cnclip_builder.system.isolation import stage_process
from cnclip_builder.tensors import Precision, Tower


def require_tensorrt(arch: Arch, checkpoint: str | None) -> None:
    """Refuses to build plans where none can be built.

    Args:
        arch: the architecture, for the commands that the message gives.
        checkpoint: as the user named it, likewise.

    Raises:
        MissingRequirementError: saying what is missing here, and the commands for the way round; or what of it is of
            the wrong version.
    """
    no_gpu = missing_gpu()
    missing = [f"an NVIDIA GPU with its driver ({no_gpu})"] if no_gpu else []
    missing += [
        f"{what} ({how})"
        for module, what, how in (
            ("tensorrt", "TensorRT's Python module", "your tritonserver's version, as by make's TENSORRT=10.13.3"),
            ("polygraphy", "polygraphy", "pip install 'cn-clip-triton[tensorrt]'"),
        )
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        model = shlex.join([*arch.options, *(["--checkpoint", checkpoint] if checkpoint else [])])
        raise MissingRequirementError(
            f"no TensorRT plan can be built: this machine lacks {' and '.join(missing)}. Use PLATFORM=onnxruntime; or "
            f"run `cnclip-build tensorrt {model} --bundle plans` here, "
            '`docker run --rm --gpus all -v "$PWD/plans:/plans" TENSORRT_IMAGE python3 /plans/build_plans.pyz` where '
            "the GPU is (TENSORRT_IMAGE: NVIDIA's tensorrt:YY.MM-py3 of your tritonserver's month), and then "
            f"`cnclip-build repository {model} --platform tensorrt --target gpu --plans plans` here"
        )
    with stage_process(on_gpu=True) as process:
        process.run(_require_machine)


@dataclass(frozen=True)
class PlanSettings:
    """How plans are made.

    Attributes:
        max_batch_size: most rows of a batch, for profiles that are not given.
        context_length: most tokens of a text, likewise.
        image_profiles: what image encoders are tuned for; None for `default_profiles`.
        text_profiles: what text encoders are tuned for; None for `default_profiles`.
        options: settings of TensorRT's builder; with `fast`, only full batches are tuned for by default.
        tuned_length: the tokens to which most texts are padded, for profiles that are not given; None for
            `context_length`.
    """

    max_batch_size: int
    context_length: int
    image_profiles: tuple[Profile, ...] | None = None
    text_profiles: tuple[Profile, ...] | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    tuned_length: int | None = None

    def profiles(self, tower: Tower) -> tuple[Profile, ...]:
        """What an encoder is tuned for."""
        given = self.image_profiles if tower == "image" else self.text_profiles
        if given:
            return given
        length = None if tower == "image" else self.context_length
        profiles = default_profiles(self.max_batch_size, length, self.tuned_length)
        return profiles[-1:] if self.options.fast else profiles


@dataclass(frozen=True)
class Plan:
    """A plan on disk that was proved against PyTorch.

    Attributes:
        path: the plan; its sidecar is beside it.
        record: the sidecar's content.
    """

    path: Path
    record: PlanRecord


def write_jobs_of(
    artefacts: Artefacts,
    towers: Sequence[Tower],
    precision: Precision,
    edges: Edges,
    settings: PlanSettings,
    folder: Path | None = None,
) -> dict[Tower, PlanJob]:
    """Writes what plans are made from.

    Args:
        artefacts: the ONNX artefacts, `precision` among them.
        towers: which encoders.
        precision: which precision.
        edges: what the plans take and give.
        settings: how the plans are made.
        folder: where to; beside the artefacts if None, sharing their weights.

    Raises:
        SettingError: a profile does not fit its encoder.
        ParityError: an ONNX file differs from PyTorch beyond the tolerance.
    """
    jobs: dict[Tower, PlanJob] = {}
    for tower in towers:
        artefact = artefacts.get(tower, precision)
        with stage_process() as process:
            jobs[tower] = process.run(
                write_plan_job, artefact, edges, settings.profiles(tower), folder or artefact.folder
            )
    return jobs


def build_plans(jobs: dict[Tower, PlanJob], folder: Path, options: BuildOptions) -> dict[Tower, Plan]:
    """Makes plans on this machine's GPU, each in a process of its own, or finds them made.

    Raises:
        MissingRequirementError: there is no GPU or no TensorRT.
        PlanError: TensorRT refuses a graph.
        ParityError: a plan differs from PyTorch beyond its tolerance; it is not kept.
    """
    plans: dict[Tower, Plan] = {}
    for tower, job in jobs.items():
        with stage_process(on_gpu=True) as process:
            plans[tower] = Plan(folder / job.plan, process.run(_make, job, folder, options))
    return plans


def find_plans(jobs: dict[Tower, PlanJob], folders: Sequence[Path], *, tf32: bool = False) -> dict[Tower, list[Plan]]:
    """Finds plans that were made elsewhere, one of each encoder for each kind of GPU.

    Args:
        jobs: what the plans must have been made from.
        folders: each holds the plans of one kind of GPU, with their sidecars.
        tf32: whether FP32 plans may compute in TF32.

    Raises:
        PlanError: a plan is missing, damaged, of another ONNX file or range, or of a kind of GPU that another folder
            has, too; plans are of several TensorRT versions; or an FP32 plan computes in TF32 unasked.
    """
    found: dict[Tower, list[Plan]] = {
        tower: [Plan(folder / job.plan, require_usable(folder / job.plan, job)) for folder in folders]
        for tower, job in jobs.items()
    }
    _require_one_set(found, tf32=tf32)
    return found


def look_for_plans(
    arch: Arch,
    towers: Sequence[Tower],
    precision: Precision,
    settings: PlanSettings,
    folders: Sequence[Path],
    *,
    tf32: bool = False,
) -> dict[Tower, list[Plan]]:
    """Finds served plans as `find_plans` does, of ONNX files that need not be made yet: what they are is not looked at.

    Args:
        arch: the architecture.
        towers: which encoders.
        precision: which precision.
        settings: how the plans must have been made.
        folders: as for `find_plans`.
        tf32: likewise.

    Raises:
        PlanError: as `find_plans`, but for plans of another ONNX file.
    """
    found: dict[Tower, list[Plan]] = {}
    for tower in towers:
        name = plan_name(Artefact(arch, tower, precision, Path()), "served")
        found[tower] = [Plan(folder / name, read_whole(folder / name)) for folder in folders]
        for plan in found[tower]:
            plan.record.require_made_for(precision, served_input(arch, tower), settings.profiles(tower))
    _require_one_set(found, tf32=tf32)
    return found


def _require_one_set(found: Mapping[Tower, Sequence[Plan]], *, tf32: bool) -> None:
    """Refuses plans that no one repository can hold."""
    for plans in found.values():
        for plan in plans:
            if plan.record.precision == "fp32" and plan.record.options.tf32 and not tf32:
                raise PlanError(
                    f"{plan.path} was made with --tf32, so that its FP32 is TF32: build it without, or serve it "
                    "with --tf32"
                )
        kinds = [plan.record.device.compute_capability for plan in plans]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise PlanError(
                    f"{' and '.join(str(plan.path) for plan in plans)}: several are for GPUs of compute capability "
                    f"{kind}, and Triton chooses by that alone: name one folder for each"
                )
    versions = sorted({plan.record.tensorrt for plans in found.values() for plan in plans})
    if len(versions) > 1:
        raise PlanError(
            f"the plans were made by TensorRT {' and '.join(versions)}, and a tritonserver has one: build them with "
            "the version that serves them"
        )


def _make(job: PlanJob, folder: Path, options: BuildOptions) -> PlanRecord:
    tensorrt, device = load_tensorrt(), current_device()
    return make_plan(job, folder, folder, tensorrt, device, options, require_machine(tensorrt, device))


def _require_machine() -> None:
    require_machine(load_tensorrt(), current_device())
