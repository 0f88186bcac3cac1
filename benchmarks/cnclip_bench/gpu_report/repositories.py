"""The repositories that are measured, one for each of Triton's backends that this machine has the libraries for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnclip_bench.gpu_report.inputs import BATCH_SIZES
from cnclip_bench.gpu_report.rows import PassedOver, Report, Setup
from cnclip_bench.subject import FOLDER, Subject, checkpoint_file

if TYPE_CHECKING:
    from cnclip_builder.build import BuildRequest
    from cnclip_builder.repository.settings import Platform

__all__ = ["build_for_onnxruntime", "build_for_tensorrt", "request_for", "subject_of"]


def build_for_onnxruntime(setup: Setup, report: Report) -> None:
    """Builds a repository as `make repo` does; on a CPU with batches as large as on a GPU."""
    from cnclip_builder.build import build_repository

    build_repository(request_for(setup, "onnxruntime"))


def build_for_tensorrt(setup: Setup, report: Report) -> None:
    """Builds plans, of one profile each: two take twice the time.

    Raises:
        PassedOver: What is measured runs on a CPU.
        MissingRequirementError: There is no TensorRT.
    """
    if not setup.gpu:
        raise PassedOver("plans are for GPUs, and this machine shows none")
    from dataclasses import replace

    from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, get_arch
    from cnclip_builder.build import build_repository
    from cnclip_builder.plans.here import PlanSettings, require_tensorrt
    from cnclip_builder.plans.profiles import default_profiles
    from cnclip_builder.tensors import TOWERS

    require_tensorrt(get_arch(setup.arch), setup.checkpoint)
    request = request_for(setup, "tensorrt")
    images, texts = (request.serving.encoder(tower).max_batch_size for tower in TOWERS)
    settings = PlanSettings(
        max(images, texts),
        DEFAULT_CONTEXT_LENGTH,
        image_profiles=default_profiles(images)[-1:],
        text_profiles=default_profiles(texts, DEFAULT_CONTEXT_LENGTH, request.serving.padded_lengths[0])[-1:],
    )
    build_repository(replace(request, plan_settings=settings))


def subject_of(setup: Setup, platform: Platform) -> Subject:
    """What is measured of a repository that was built.

    Raises:
        CheckpointError: The checkpoint is gone.
    """
    from cnclip_builder.arch import get_arch

    from cnclip_bench import inputs

    arch = get_arch(setup.arch)
    return Subject(
        arch=arch,
        checkpoint=checkpoint_file(setup.checkpoint, arch),
        repository=setup.repository(platform),
        artefacts=FOLDER / "artefacts" / arch.slug,
        name=arch.slug,
        images=inputs.images(None, arch.resolution),
        texts=inputs.captions(None),
    )


def request_for(setup: Setup, platform: Platform, **more: Any) -> BuildRequest:
    """What is asked of the builder for one of Triton's backends; `more` are settings by name.

    Of several GPUs the first alone serves: what runs in process runs there, and memory is looked at there.
    """
    from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, get_arch
    from cnclip_builder.build import BuildRequest
    from cnclip_builder.repository.choosing import choose_settings

    chosen: dict[str, Any] = {"target": "gpu" if setup.gpu else "cpu", "platform": platform, **more}
    if setup.gpu:
        chosen["gpus"] = (0,)
    else:
        chosen["max_batch_size"] = {tower: max(sizes) for tower, sizes in BATCH_SIZES.items()}
    serving, _ = choose_settings(chosen, {}, DEFAULT_CONTEXT_LENGTH)
    return BuildRequest(
        arch=get_arch(setup.arch),
        checkpoint=setup.checkpoint,
        serving=serving,
        repository=setup.repository(platform),
        artefacts=FOLDER / "artefacts",
        download_root=FOLDER / "checkpoints",
    )
