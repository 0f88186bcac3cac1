"""`cnclip-build`: the stages of a build, each as a command."""

from __future__ import annotations

import logging
import shlex
import sys
from enum import Enum
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, TOWERS, get_arch, official_archs
from cnclip_builder.cli.publishing import prune, publish
from cnclip_builder.errors import BuildError, SlowerError
from cnclip_builder.parity.distance import PRECISIONS
from cnclip_builder.repository.serving import DEFAULT_MAX_IMAGE_PIXELS, ServingConfig
from cnclip_builder.system.isolation import configure_logging
from cnclip_builder.system.machine import (
    LEAST_INT8_SPEED_UP,
    default_max_batch_size,
    default_precision,
    default_target,
    require_tensorrt,
)

if TYPE_CHECKING:
    from cnclip_builder.arch import Tower
    from cnclip_builder.plans.here import PlanSettings

app = typer.Typer(
    name="cnclip-build",
    help="Takes a Chinese-CLIP checkpoint to a Triton model repository.\n\n"
    "Most users want `repository`, which does everything; the other commands are its stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class TowerChoice(str, Enum):
    """An encoder, on the command line."""

    image = "image"
    text = "text"


class PrecisionChoice(str, Enum):
    """A precision, on the command line."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class PlanPrecisionChoice(str, Enum):
    """A precision of TensorRT plans, on the command line."""

    fp32 = "fp32"
    fp16 = "fp16"


class TargetChoice(str, Enum):
    """What encoders run on, on the command line."""

    cpu = "cpu"
    gpu = "gpu"


class PlatformChoice(str, Enum):
    """A Triton backend for encoders, on the command line."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


class AcceleratorChoice(str, Enum):
    """What runs ONNX files on a GPU, on the command line."""

    none = "none"
    cuda = "cuda"
    tensorrt = "tensorrt"


class EdgesChoice(str, Enum):
    """What a plan takes and gives, on the command line."""

    served = "served"
    cn_clip = "cn_clip"


class HubChoice(str, Enum):
    """Where official checkpoints come from, on the command line."""

    huggingface = "huggingface"
    modelscope = "modelscope"


ArchOption = Annotated[
    str,
    typer.Option(
        "--arch",
        help="RN50, ViT-B-16, ViT-L-14, ViT-L-14-336 or ViT-H-14; or a .json file with the arguments of cn_clip's "
        "CLIP class.",
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    Optional[str],  # noqa: UP045  # Typer reads it at run time, on Python 3.10 too
    typer.Option(
        "--checkpoint",
        help="A pretrained or fine-tuned .pt file, or random:SEED for untrained weights. Default: the official "
        "checkpoint, downloaded.",
        show_default=False,
    ),
]
DownloadRootOption = Annotated[
    Path,
    typer.Option(
        help="Where downloaded and random checkpoints are kept.",
        envvar="CNCLIP_DOWNLOAD_ROOT",
        file_okay=False,
    ),
]
HubOption = Annotated[HubChoice, typer.Option(help="Where the official checkpoint is downloaded from.")]
ArtefactsOption = Annotated[
    Path, typer.Option(help="Folder of the ONNX files; each model has a folder in it.", file_okay=False)
]
NameOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Name of the served models. Default: the arch in lower case.", show_default=False),
]
ImageProfileOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--image-profile",
        help="What image plans are tuned for, batch=MIN:OPT:MAX; may be repeated. Default: one for a lone request, one "
        "for full batches.",
        show_default=False,
    ),
]
TextProfileOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--text-profile",
        help="Likewise of text plans, batch=MIN:OPT:MAX,length=MIN:OPT:MAX.",
        show_default=False,
    ),
]
WorkspaceOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Most GPU memory for a kernel's scratch, in MiB. Default: all there is.", show_default=False),
]
OptimizationLevelOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="TensorRT's, 0 (fast to build) to 5 (fast to run). Default: its own, 3.", show_default=False),
]
LeastInt8SpeedUpOption = Annotated[
    float,
    typer.Option(
        help="How many times FP32's speed INT8 must reach on this machine; 0 to take it in any case, as when another "
        "machine is to serve it.",
        min=0,
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks and library logs.")]

DEFAULT_ARTEFACTS = Path("build/artefacts")
DEFAULT_REPOSITORY = Path("build/repository")
DEFAULT_DOWNLOAD_ROOT = Path("build/checkpoints")


@app.command()
def archs() -> None:
    """List the architectures."""
    table = Table("arch", "resolution", "embedding size", "most tokens", "official checkpoint")
    for arch in official_archs():
        table.add_row(
            arch.name,
            str(arch.resolution),
            str(arch.embedding_size),
            str(arch.max_context_length),
            arch.hub.filename if arch.hub else "",
        )
    Console().print(table)


@app.command()
def checkpoint(
    arch: ArchOption,
    checkpoint: CheckpointOption = None,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = HubChoice.huggingface,
    verbose: VerboseOption = False,
) -> None:
    """Fetch a checkpoint and check that it is of the architecture."""
    from cnclip_builder.stages import open_checkpoint

    facts = open_checkpoint(checkpoint, get_arch(arch), download_root, hub.value)
    typer.echo(f"file          {facts.file.path}")
    typer.echo(f"sha256        {facts.sha256}")
    typer.echo(f"logit scale   {facts.logit_scale:.6g}")
    typer.echo(f"FP32 weights  {sum(facts.fp32_bytes.values()) / 1e6:.0f} MB")


@app.command()
def onnx(
    arch: ArchOption,
    checkpoint: CheckpointOption = None,
    tower: Annotated[
        Optional[list[TowerChoice]],  # noqa: UP045
        typer.Option(help="Only this encoder; may be given twice. Default: both.", show_default=False),
    ] = None,
    precision: Annotated[
        Optional[list[PrecisionChoice]],  # noqa: UP045
        typer.Option(help="Only this precision; may be repeated. Default: fp32 and fp16.", show_default=False),
    ] = None,
    least_int8_speed_up: LeastInt8SpeedUpOption = LEAST_INT8_SPEED_UP,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    name: NameOption = None,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = HubChoice.huggingface,
    verbose: VerboseOption = False,
) -> None:
    """Export the encoders to ONNX and prove them against PyTorch.

    The files have the names and tensors that cn_clip's own scripts give them.
    """
    from cnclip_builder.artefacts.maker import build_artefacts
    from cnclip_builder.build import describe
    from cnclip_builder.repository.write import check_model_name

    chosen = get_arch(arch)
    made = build_artefacts(
        chosen,
        checkpoint,
        artefacts / check_model_name(name or chosen.slug),
        towers=[choice.value for choice in tower or ()] or TOWERS,
        precisions=[choice.value for choice in precision or ()] or PRECISIONS,
        download_root=download_root,
        hub=hub.value,
        least_int8_speed_up=least_int8_speed_up,
    )
    for line in describe(made):
        typer.echo(line)
    if made.slower:
        raise SlowerError("; ".join(made.slower.values()))


@app.command()
def tensorrt(
    arch: ArchOption,
    checkpoint: CheckpointOption = None,
    tower: Annotated[
        Optional[list[TowerChoice]],  # noqa: UP045
        typer.Option(help="Only this encoder; may be given twice. Default: both.", show_default=False),
    ] = None,
    precision: Annotated[PlanPrecisionChoice, typer.Option(help="Of the plans.")] = PlanPrecisionChoice.fp16,
    edges: Annotated[
        Optional[EdgesChoice],  # noqa: UP045
        typer.Option(
            help="What plans take and give: cn_clip, what its own scripts make (NAME.img.fp16.trt), or served, what a "
            "repository holds (NAME.img.fp16.served.trt). Default: cn_clip; served with --bundle.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Build no plans, but write a folder to carry to a GPU machine: ONNX files and one script.",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most rows of a batch.")] = 64,
    context_length: Annotated[int, typer.Option(help="Most tokens of a text.")] = DEFAULT_CONTEXT_LENGTH,
    image_profile: ImageProfileOption = None,
    text_profile: TextProfileOption = None,
    workspace_mib: WorkspaceOption = None,
    optimization_level: OptimizationLevelOption = None,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    name: NameOption = None,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = HubChoice.huggingface,
    verbose: VerboseOption = False,
) -> None:
    """Build TensorRT plans for this machine's GPU and prove them against PyTorch; or write what another one needs.

    A plan runs on the kind of GPU and the version of TensorRT that made it, which its sidecar (.trt.json) names.
    """
    from cnclip_builder.artefacts.maker import build_artefacts
    from cnclip_builder.plans.bundle import SCRIPT_NAME, finish_bundle, new_bundle
    from cnclip_builder.plans.here import build_plans, write_jobs_of
    from cnclip_builder.repository.write import check_model_name

    chosen = get_arch(arch)
    settings = _plan_settings(
        max_batch_size,
        chosen.checked_context_length(context_length),
        image_profile,
        text_profile,
        workspace_mib,
        optimization_level,
    )
    if bundle is None:
        require_tensorrt(_model_options(arch, checkpoint))
    towers: list[Tower] = [choice.value for choice in tower or TowerChoice]
    made = build_artefacts(
        chosen,
        checkpoint,
        artefacts / check_model_name(name or chosen.slug),
        towers=towers,
        precisions=[precision.value],
        download_root=download_root,
        hub=hub.value,
    )
    chosen_edges = edges.value if edges else "served" if bundle else "cn_clip"
    if bundle is not None:
        with new_bundle(bundle) as folder:
            jobs = write_jobs_of(made, chosen, towers, precision.value, chosen_edges, settings, folder)
            finish_bundle(folder, tuple(jobs.values()))
        typer.echo(f"{bundle / SCRIPT_NAME} makes {', '.join(job.plan for job in jobs.values())} where it is run")
        return
    jobs = write_jobs_of(made, chosen, towers, precision.value, chosen_edges, settings)
    for plan in build_plans(jobs, made.items[0].path.parent, settings.options).values():
        distance = plan.record.parity["pytorch"]["cosine_distance"]
        typer.echo(f"{plan.path}  {plan.record.precision}  1 - cosine <= {distance:.0e}")


@app.command()
def repository(
    arch: ArchOption,
    checkpoint: CheckpointOption = None,
    repository: Annotated[
        Path, typer.Option(help="The model repository's folder.", file_okay=False)
    ] = DEFAULT_REPOSITORY,
    target: Annotated[
        Optional[TargetChoice],  # noqa: UP045
        typer.Option(
            help="What encoders run on. Default: gpu where nvidia-smi lists one, else cpu.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        Optional[PrecisionChoice],  # noqa: UP045
        typer.Option(
            help="Of the served encoders; int8 on CPUs alone. Default: fp16 on a GPU, fp32 on a CPU.",
            show_default=False,
        ),
    ] = None,
    platform: Annotated[
        PlatformChoice, typer.Option(help="Triton's backend for the encoders.")
    ] = PlatformChoice.onnxruntime,
    accelerator: Annotated[
        AcceleratorChoice,
        typer.Option(help="What the onnxruntime backend runs ONNX files with on a GPU; tensorrt builds at load time."),
    ] = AcceleratorChoice.none,
    plans: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="A folder of plans made elsewhere, for --platform tensorrt; one for each kind of GPU.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    image_profile: ImageProfileOption = None,
    text_profile: TextProfileOption = None,
    workspace_mib: WorkspaceOption = None,
    optimization_level: OptimizationLevelOption = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Record and replay the launches of image plans.")
    ] = False,
    pinned_memory: Annotated[bool, typer.Option(help="Copy to and from a GPU by page-locked memory.")] = True,
    context_length: Annotated[
        int, typer.Option(help="Most tokens of a text; longer ones are cut.")
    ] = DEFAULT_CONTEXT_LENGTH,
    max_batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Most rows of a batch. Default: 64 on a GPU, 32 on a CPU.", show_default=False),
    ] = None,
    max_queue_size: Annotated[
        int,
        typer.Option(
            help="Requests that may wait for a model; 0: any number. A bound costs throughput: docs/serving.md."
        ),
    ] = 0,
    encoder_instances: Annotated[int, typer.Option(help="Copies of each encoder (of each GPU).")] = 1,
    encoder_threads: Annotated[int, typer.Option(help="Threads of an encoder on a CPU; 0: all cores.")] = 0,
    preprocess_instances: Annotated[int, typer.Option(help="Processes that decode images.")] = 1,
    preprocess_threads: Annotated[int, typer.Option(help="Threads in each of them; 0: as many as cores.")] = 0,
    max_image_pixels: Annotated[
        int, typer.Option(help="Width times height of the largest image that is decoded; a larger one is refused.")
    ] = DEFAULT_MAX_IMAGE_PIXELS,
    reduced_decoding: Annotated[
        bool,
        typer.Option(
            "--reduced-decoding",
            help="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, above twice the resolution: twice as fast, grey "
            "levels off by 0.3 on average (1.5 at 12 megapixels), features by 1 - cosine = 1e-5: docs/serving.md.",
        ),
    ] = False,
    name: NameOption = None,
    model_version: Annotated[
        int, typer.Option(help="Triton's version number; a new one stays beside the old ones.")
    ] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Serve it and compare it with PyTorch before it takes its place.")
    ] = False,
    least_int8_speed_up: LeastInt8SpeedUpOption = LEAST_INT8_SPEED_UP,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = HubChoice.huggingface,
    verbose: VerboseOption = False,
) -> None:
    """Build a model repository: checkpoint, ONNX files, and all that Triton needs.

    Models of other names, and other versions, that are in the repository stay in it.
    """
    from cnclip_builder.build import BuildRequest, build_repository

    chosen_target = target.value if target else "gpu" if platform is PlatformChoice.tensorrt else default_target()
    chosen_arch = get_arch(arch)
    chosen_batch = default_max_batch_size(chosen_target) if max_batch_size is None else max_batch_size
    if platform is PlatformChoice.tensorrt and not plans:
        require_tensorrt(_model_options(arch, checkpoint))
    request = BuildRequest(
        arch=chosen_arch,
        checkpoint=checkpoint,
        serving=ServingConfig(
            target=chosen_target,
            precision=precision.value if precision else default_precision(chosen_target),
            context_length=chosen_arch.checked_context_length(context_length),
            max_batch_size=chosen_batch,
            platform=platform.value,
            accelerator=accelerator.value,
            cuda_graphs=cuda_graphs,
            pinned_memory=pinned_memory,
            max_queue_size=max_queue_size,
            encoder_instances=encoder_instances,
            encoder_threads=encoder_threads,
            preprocess_instances=preprocess_instances,
            preprocess_threads=preprocess_threads,
            max_image_pixels=max_image_pixels,
            reduced_decoding=reduced_decoding,
        ),
        repository=repository,
        artefacts=artefacts,
        download_root=download_root,
        name=name,
        version=model_version,
        hub=hub.value,
        verify=verify,
        plan_settings=_plan_settings(
            chosen_batch, context_length, image_profile, text_profile, workspace_mib, optimization_level
        ),
        plan_folders=tuple(plans or ()),
        least_int8_speed_up=least_int8_speed_up,
    )
    entry = build_repository(request)
    serving = entry.serving
    typer.echo(
        f"{repository} serves {entry.name}-image and {entry.name}-text, version {entry.version}: {entry.arch.name}, "
        f"{entry.precision} on {serving.target}, batches of up to {serving.max_batch_size}, texts of up to "
        f"{serving.context_length} tokens"
    )


@app.command()
def verify(
    arch: ArchOption,
    checkpoint: CheckpointOption = None,
    url: Annotated[str, typer.Option(help="The server's gRPC address.")] = "localhost:8001",
    name: NameOption = None,
    image: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="An image to compare instead of the built-in ones; may be repeated.", show_default=False),
    ] = None,
    captions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Texts to compare, a line each, instead of the built-in ones.", show_default=False),
    ] = None,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = HubChoice.huggingface,
    verbose: VerboseOption = False,
) -> None:
    """Compare the features of a running server with PyTorch's, row by row."""
    from cnclip_builder.checkpoint.sources import fetch_checkpoint
    from cnclip_builder.verify import verify_server

    chosen = get_arch(arch)
    verification = verify_server(
        url,
        name or chosen.slug,
        fetch_checkpoint(checkpoint, chosen, download_root, hub.value).path,
        chosen,
        images={str(path): path.read_bytes() for path in image} if image else None,
        texts=captions.read_text(encoding="utf-8").splitlines() if captions else None,
    )
    table = Table("features", "rows", "1 - cosine", "centred", "largest difference")
    for tower, parity in verification.parity.items():
        table.add_row(
            tower,
            str(parity.rows),
            f"{parity.cosine_distance:.1e}",
            f"{parity.centred_distance:.1e}",
            f"{parity.absolute_difference:.1e}",
        )
    if (reduced := verification.reduced_decoding) is not None:
        typer.echo(
            "Large JPEGs are decoded at reduced scale, here and in the PyTorch that they are compared with. From exact "
            f"decoding that takes features by 1 - cosine = {reduced.cosine_distance:.1e}, "
            f"{reduced.centred_distance:.1e} after centring."
        )
    tolerance = verification.tolerance
    table.add_row("at most", "", f"{tolerance.cosine_distance:.0e}", f"{tolerance.centred_distance:.0e}", "")
    Console().print(table)
    verification.require()


app.command()(publish)
app.command()(prune)


def _model_options(arch: str, checkpoint: str | None) -> str:
    """The options that name a checkpoint, as they were typed."""
    return shlex.join(["--arch", arch, *(["--checkpoint", checkpoint] if checkpoint else [])])


def _plan_settings(
    max_batch_size: int,
    context_length: int,
    image_profiles: list[str] | None,
    text_profiles: list[str] | None,
    workspace_mib: int | None,
    optimization_level: int | None,
) -> PlanSettings:
    from cnclip_builder.plans.api import BuildOptions
    from cnclip_builder.plans.here import PlanSettings
    from cnclip_builder.plans.profiles import Profile

    return PlanSettings(
        max_batch_size,
        context_length,
        tuple(map(Profile.parse, image_profiles)) if image_profiles else None,
        tuple(map(Profile.parse, text_profiles)) if text_profiles else None,
        BuildOptions(workspace_mib, optimization_level),
    )


def _version(show: bool) -> None:
    if show:
        typer.echo(f"cn-clip-triton {installed_version('cn-clip-triton')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command. An error is one line on stderr and exit status 1; `-v` adds the traceback."""
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    configure_logging(logging.INFO if verbose else logging.WARNING)
    try:
        app()
    except (BuildError, OSError, ModuleNotFoundError) as error:
        if verbose:
            logging.getLogger(__name__).exception("the build failed")
        missing = isinstance(error, ModuleNotFoundError)
        fix = ": pip install 'cn-clip-triton[builder]' installs all that a build needs" if missing else ""
        typer.echo(f"error: {error}{fix}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was there before is untouched", err=True)
        sys.exit(130)
