"""The stages up to encoders: architectures, checkpoints, ONNX files and TensorRT plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from cnclip_console import gives_options, option, print_table

from cnclip_builder.arch import official_archs
from cnclip_builder.cli.options import (
    DEFAULT_ARTEFACTS,
    ArtefactsOption,
    LeastInt8SpeedUpOption,
    ModelOptions,
    PlanOptions,
    PrecisionsOption,
    Tf32Option,
    TowersOption,
    VerboseOption,
    chosen_towers,
)
from cnclip_builder.errors import SlowerError
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP
from cnclip_builder.plans.record import Edges
from cnclip_builder.tensors import ALL_PRECISIONS, PRECISIONS

PlanPrecision = Literal["fp32", "fp16"]


def archs() -> None:
    """List the architectures.

    Example:
      cnclip-build archs
    """
    print_table(
        ("arch", "resolution", "embedding size", "most tokens", "official checkpoint"),
        (
            (
                arch.name,
                str(arch.resolution),
                str(arch.embedding_size),
                str(arch.max_context_length),
                arch.hub.filename if arch.hub else "",
            )
            for arch in official_archs()
        ),
    )


@gives_options(ModelOptions, "model")
def checkpoint(*, model: ModelOptions, verbose: VerboseOption = False) -> None:
    """Fetch a checkpoint, tell its architecture, and check that it fits the one that is named.

    Example:
      cnclip-build checkpoint --arch ViT-B-16 --checkpoint epoch_latest.pt
    """
    from cnclip_builder.checkpoint.stage import open_checkpoint

    chosen = model.choose_arch()
    facts = open_checkpoint(model.checkpoint, chosen, model.download_root, model.hub)
    typer.echo(f"arch          {chosen.name}")
    typer.echo(f"file          {facts.file.path}")
    for file in facts.files if len(facts.files) > 1 else ():
        typer.echo(f"  of it       {file}")
    if facts.file.revision:
        typer.echo(f"revision      {facts.file.revision}")
    typer.echo(f"sha256        {facts.sha256}")
    typer.echo(f"logit scale   {facts.logit_scale:.6g}")
    typer.echo(f"FP32 weights  {sum(facts.fp32_bytes.values()) / 1e6:.0f} MB")


@gives_options(ModelOptions, "model")
def onnx(
    *,
    model: ModelOptions,
    tower: TowersOption = None,
    precision: PrecisionsOption = None,
    least_int8_speed_up: LeastInt8SpeedUpOption = LEAST_INT8_SPEED_UP,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    verbose: VerboseOption = False,
) -> None:
    """Export the encoders to ONNX and prove them against PyTorch.

    The files have the names and tensors that cn_clip's own scripts give them.

    Examples:
      cnclip-build onnx --arch ViT-B-16
      cnclip-build onnx --arch RN50 --tower image --precision fp16
    """
    from cnclip_builder.artefacts.maker import build_artefacts
    from cnclip_builder.repository.sharing import check_model_name
    from cnclip_builder.system.atomic import locked

    chosen = model.choose_arch()
    folder = artefacts / check_model_name(model.served_name(chosen))
    with locked(folder):
        made = build_artefacts(
            chosen,
            model.checkpoint,
            folder,
            towers=chosen_towers(tower),
            precisions=[one for one in ALL_PRECISIONS if one in (precision or PRECISIONS)],
            download_root=model.download_root,
            hub=model.hub,
            least_int8_speed_up=least_int8_speed_up,
            fp16_may_fail=not precision,
        )
    for artefact in made.items:
        reused = "  (reused)" if artefact.reused else ""
        distance = artefact.record.parity.cosine_distance
        typer.echo(f"{artefact.path}  {artefact.precision}  1 - cosine <= {distance:.0e}{reused}")
    if made.slower:
        raise SlowerError("; ".join(made.slower.values()))


@gives_options(ModelOptions, "model")
@gives_options(PlanOptions, "plan")
def tensorrt(
    *,
    model: ModelOptions,
    tower: TowersOption = None,
    precision: Annotated[PlanPrecision, option("Of the plans.")] = "fp16",
    edges: Annotated[
        Edges | None,
        option(
            "What plans take and give: cn_clip, what its own scripts make (NAME.img.fp16.trt), or served, what a "
            "repository holds (NAME.img.fp16.served.trt). Default: cn_clip; served with --bundle."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        option(
            "Build no plans, but write a folder to carry to a GPU machine: ONNX files and one script.", file_okay=False
        ),
    ] = None,
    max_batch_size: Annotated[int, option("Most rows of a batch.")] = 64,
    context_length: Annotated[
        int | None, option("Most tokens of a text. Default: 52, or what the model has room for.")
    ] = None,
    plan: PlanOptions,
    tf32: Tf32Option = None,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    verbose: VerboseOption = False,
) -> None:
    """Build TensorRT plans for this machine's GPU and prove them against PyTorch; or write what another one needs.

    A plan runs on the kind of GPU and the version of TensorRT that made it, which its sidecar (.trt.json) names.

    Examples:
      cnclip-build tensorrt --arch ViT-B-16
      cnclip-build tensorrt --arch ViT-B-16 --bundle build/plans
    """
    from cnclip_builder.artefacts.maker import build_artefacts
    from cnclip_builder.plans.bundle import SCRIPT_NAME, finish_bundle, new_bundle
    from cnclip_builder.plans.here import build_plans, require_tensorrt, write_jobs_of
    from cnclip_builder.repository.serving import ServingConfig
    from cnclip_builder.repository.sharing import check_model_name
    from cnclip_builder.system.atomic import locked

    chosen = model.choose_arch()
    length = chosen.default_context_length if context_length is None else chosen.checked_context_length(context_length)
    settings = plan.settings(
        max_batch_size,
        length,
        bool(tf32),
        ServingConfig("gpu", precision, length, max_batch_size, "tensorrt").padded_lengths[0],
    )
    if bundle is None:
        require_tensorrt(chosen, model.checkpoint)
    towers = chosen_towers(tower)
    place = artefacts / check_model_name(model.served_name(chosen))
    with locked(place):
        made = build_artefacts(
            chosen,
            model.checkpoint,
            place,
            towers=towers,
            precisions=[precision],
            download_root=model.download_root,
            hub=model.hub,
        )
        chosen_edges: Edges = edges or ("served" if bundle else "cn_clip")
        if bundle is not None:
            with new_bundle(bundle) as folder:
                jobs = write_jobs_of(made, towers, precision, chosen_edges, settings, folder)
                finish_bundle(folder, tuple(jobs.values()))
            typer.echo(f"{bundle / SCRIPT_NAME} makes {', '.join(job.plan for job in jobs.values())} where it is run")
            return
        jobs = write_jobs_of(made, towers, precision, chosen_edges, settings)
        for built in build_plans(jobs, place, settings.options).values():
            distance = built.record.parity["pytorch"]["cosine_distance"]
            typer.echo(f"{built.path}  {built.record.precision}  1 - cosine <= {distance:.0e}")
