"""The whole walk: checkpoint -> ONNX -> repository -> live verification."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import ArtefactPlan, Artefacts, build_artefacts, bytes_of
from cnclip_builder.card.stage import images_in, measure_card_distance, why_no_card
from cnclip_builder.checkpoint.sources import Hub
from cnclip_builder.checkpoint.stage import CheckpointFacts
from cnclip_builder.errors import MissingRequirementError, SettingError, SlowerError
from cnclip_builder.export.files import served_input
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.device import current_device, why_no_device
from cnclip_builder.plans.here import Plan, PlanSettings, build_plans, find_plans, require_tensorrt, write_jobs_of
from cnclip_builder.plans.profiles import check_profiles, largest_batch
from cnclip_builder.reference import Reference
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.manifest import MANIFEST_NAME, load_manifest, reading
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.sharing import check_place
from cnclip_builder.repository.write import add_version
from cnclip_builder.system.atomic import locked, require_room, require_space, require_writable, same_disk
from cnclip_builder.system.isolation import stage_process
from cnclip_builder.tensors import PRECISIONS, TOWERS, Precision, Tower
from cnclip_builder.verify import require_server, serving, verify_server

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildRequest:
    """What to build, and where.

    Attributes:
        arch: the architecture.
        checkpoint: a path, "random:SEED", or None for the official one.
        serving: how it is served.
        repository: the model repository's folder.
        artefacts: folder of all ONNX artefacts; those of one name are in a folder of that name.
        download_root: folder of downloaded and random checkpoints.
        name: of the served models; the architecture's slug if None.
        version: Triton's version number.
        hub: where official checkpoints are fetched from.
        verify: whether to serve the repository and compare it with PyTorch before it takes its place.
        plan_settings: how TensorRT plans are made, where they are what is served; None for defaults.
        plan_folders: folders of plans that were made elsewhere, one for each kind of GPU; none to make them here.
        least_int8_speed_up: how many times FP32's speed INT8 must reach here; a slower encoder is served in FP32.
        card_images: a folder of images, besides the built-in ones, on which a GPU that decodes is measured.
    """

    arch: Arch
    checkpoint: str | None
    serving: ServingConfig
    repository: Path
    artefacts: Path
    download_root: Path
    name: str | None = None
    version: int = 1
    hub: Hub = "huggingface"
    verify: bool = False
    plan_settings: PlanSettings | None = None
    plan_folders: tuple[Path, ...] = ()
    least_int8_speed_up: float = LEAST_INT8_SPEED_UP
    card_images: Path | None = None


def build_repository(request: BuildRequest) -> RepositoryEntry:
    """Builds a checkpoint's models into a repository.

    FP32 and FP16 of both encoders are made and proved, whichever is served, and INT8 where that is. FP16 that does not
    hold is left out where it is not served.

    Raises:
        SlowerError: INT8 was asked for and is faster for neither encoder.
        BuildError: something is wrong; whatever was in the repository before is still there.
    """
    name = check_request(request)
    require_writable(request.repository)
    # Up to the end: what is served is written from these files, and another build of this name would exchange them.
    with locked(request.artefacts / name):
        return _build(request, name)


def check_request(request: BuildRequest) -> str:
    """Checks, before hours of work, what can be checked by then; gives the name of the models.

    Raises:
        BuildError: something is wrong.
    """
    length = request.arch.checked_context_length(request.serving.context_length)
    if request.serving.precision == "int8" and length > request.arch.default_context_length:
        raise SettingError(
            f"context_length is {length}: INT8 is fitted to texts of {request.arch.default_context_length} tokens at "
            "most, and is proved on no longer ones; choose that, or another precision"
        )
    if request.verify:
        require_server()
        if request.serving.target == "gpu" and current_device() is None:
            raise MissingRequirementError(
                f"what is for a GPU can't be served here ({why_no_device()}): leave --verify out, and compare it "
                "where it is served (cnclip-build verify)"
            )
    if request.card_images is not None:
        images_in(request.card_images)
    name = request.name or request.arch.slug
    if request.repository.is_dir():  # of one that may only be read, what is replaced could not be deleted
        require_room(request.repository / MANIFEST_NAME)
    check_place(name, request.version, request.arch, request.serving, request.repository)
    if request.serving.platform == "tensorrt":
        _check_plans_fit(request)
        if not request.plan_folders:
            require_tensorrt(request.arch, request.checkpoint)
    return name


def _check_plans_fit(request: BuildRequest) -> None:
    """Checks, before hours of work, that plans will take every batch and text that is served."""
    settings, serving = plan_settings_of(request), request.serving
    for tower in TOWERS:
        profiles = settings.profiles(tower)
        context_length = serving.context_length if tower == "text" else None
        check_profiles(profiles, served_input(request.arch, tower), context_length)
        if (served := serving.encoder(tower).max_batch_size) > largest_batch(profiles):
            raise SettingError(
                f"batches of up to {served} are served, but the {tower} profiles take "
                f"{largest_batch(profiles)} at most: choose a MAX_BATCH_SIZE that they take, or larger profiles"
            )


def plan_settings_of(request: BuildRequest) -> PlanSettings:
    """How plans are made: as the request says, or as suits what is served."""
    serving = request.serving
    return request.plan_settings or PlanSettings(
        serving.largest_batch_size,
        serving.context_length,
        options=BuildOptions(tf32=serving.tf32),
        tuned_length=serving.padded_lengths[0],
    )


def _build(request: BuildRequest, name: str) -> RepositoryEntry:
    decodes_here = request.serving.preprocess == "gpu" and _has_card()
    artefacts = build_artefacts(
        request.arch,
        request.checkpoint,
        request.artefacts / name,
        towers=TOWERS,
        precisions=precisions_of(request),
        download_root=request.download_root,
        hub=request.hub,
        least_int8_speed_up=request.least_int8_speed_up,
        fp16_may_fail=request.serving.precision != "fp16",
        check=functools.partial(check_space, request, name),
    )
    _report_slower(artefacts.slower)
    if artefacts.checkpoint.file.is_random:
        logger.warning("These weights are untrained (%s): for load tests only", artefacts.checkpoint.file.source)
    plans = _plans(request, artefacts) if request.serving.platform == "tensorrt" else {}
    card = _measured_card(request, artefacts) if decodes_here else {}
    entry = RepositoryEntry(name, request.version, request.arch, artefacts, request.serving, plans, card)

    add_version(entry, request.repository, functools.partial(_serve_and_verify, entry) if request.verify else None)
    return entry


def precisions_of(request: BuildRequest) -> tuple[Precision, ...]:
    """What is made of each encoder, whatever is served."""
    return (*PRECISIONS, "int8") if request.serving.precision == "int8" else PRECISIONS


def check_space(request: BuildRequest, name: str, checkpoint: CheckpointFacts, plan: ArtefactPlan) -> None:
    """Checks, before anything is made, that the repository's disk holds what will be served: copies of the artefacts.

    Encoders of the same checkpoint that are served already are taken over without one, and plans are linked.

    Raises:
        MissingRequirementError: it does not.
    """
    with reading(request.repository / MANIFEST_NAME):
        served = load_manifest(request.repository).models.get(name, {}).get(str(request.version))
        if served is not None and served["checkpoint"]["sha256"] == checkpoint.sha256:
            return
    if request.serving.platform == "tensorrt":
        return
    needed = sum(bytes_of(checkpoint, tower, request.serving.precision) for tower in TOWERS)
    both = same_disk(request.repository, request.artefacts)
    what = "what is served and what it is made of" if both and plan.missing else "what is served"
    require_space(request.repository, needed + (plan.missing_bytes if both else 0), what)


def _report_slower(slower: Mapping[Tower, str]) -> None:
    """One slow encoder must not cost the other its gain: it is served in FP32, which is faster and exact.

    Raises:
        SlowerError: both are slower, and nothing of what was asked for would be left.
    """
    if len(slower) == len(TOWERS):
        raise SlowerError("; ".join(slower.values()) + "; or choose PRECISION=fp32")
    for tower, why in slower.items():
        logger.warning("The %s encoder is served in FP32: %s", tower, why)


def _plans(request: BuildRequest, artefacts: Artefacts) -> Mapping[Tower, Sequence[Plan]]:
    settings = plan_settings_of(request)
    jobs = write_jobs_of(artefacts, TOWERS, request.serving.precision, "served", settings)
    if request.plan_folders:
        return find_plans(jobs, request.plan_folders, tf32=request.serving.tf32)
    folder = artefacts.items[0].folder
    return {tower: [plan] for tower, plan in build_plans(jobs, folder, settings.options).items()}


def _has_card() -> bool:
    """Whether this machine's GPU can decode; what is built without one is for another machine's."""
    with stage_process(on_gpu=True) as process:
        why = process.run(why_no_card)
    if why:
        logger.warning("How far a GPU's pixels are from exact ones is not measured: %s", why)
    return not why


def _measured_card(request: BuildRequest, artefacts: Artefacts) -> dict[str, Any]:
    with artefacts.checkpoint.still(), stage_process(on_gpu=True) as process:
        path = artefacts.checkpoint.file.path
        return process.run(measure_card_distance, path, request.arch, request.card_images).as_dict()


def _serve_and_verify(entry: RepositoryEntry, repository: Path) -> dict[str, Any]:
    """Serves a repository that is not in its place yet, and gives what its manifest is to say of that."""
    logger.info("Serving the repository to compare it with PyTorch")
    with serving(repository, "the repository") as url, stage_process() as process:
        reference = Reference(entry.artefacts.checkpoint.file.path, entry.arch)
        verification = process.run(verify_server, url, entry.name, reference)
    verification.require()
    return verification.as_dict()
