"""The options that several commands share, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cnclip_builder.checkpoint.sources import Hub
from cnclip_builder.tensors import ALL_PRECISIONS, TOWERS, Tower

if TYPE_CHECKING:
    from cnclip_builder.plans.here import PlanSettings


def _one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of several words; Typer itself takes no lists of them."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}.")
        return text

    return parse


ArchOption = Annotated[
    Optional[str],  # noqa: UP045  # Typer reads it at run time, on Python 3.10 too
    typer.Option(
        "--arch",
        help="RN50, ViT-B-16, ViT-L-14, ViT-L-14-336 or ViT-H-14; or a .json file with the arguments of cn_clip's "
        "CLIP class. Default: what the tensors of --checkpoint tell; ViT-B-16 without one.",
        show_default=False,
    ),
]
VocabularyOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--vocabulary",
        help="The vocab.txt of a text encoder whose tokens are not cn_clip's: a token a line. Default: the one in the "
        "checkpoint's folder, else cn_clip's.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--checkpoint",
        help="A pretrained or fine-tuned .pt or .safetensors file; a folder of Hugging Face's transformers; "
        "hf:OWNER/NAME, with @REVISION or without; or random:SEED for untrained weights. Default: the official "
        "checkpoint, downloaded.",
        show_default=False,
    ),
]
DownloadRootOption = Annotated[
    Path,
    typer.Option(
        help="Where official and random checkpoints are kept.",
        envvar="CNCLIP_DOWNLOAD_ROOT",
        file_okay=False,
    ),
]
HubOption = Annotated[Hub, typer.Option(help="Where the official checkpoint is downloaded from.")]
ArtefactsOption = Annotated[
    Path, typer.Option(help="Folder of the ONNX files; each model has a folder in it.", file_okay=False)
]
NameOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Name of the served models. Default: the arch in lower case.", show_default=False),
]
TowersOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar=f"[{'|'.join(TOWERS)}]",
        parser=_one_of(*TOWERS),
        help="Only this encoder; may be given twice. Default: both.",
        show_default=False,
    ),
]
PrecisionsOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar=f"[{'|'.join(ALL_PRECISIONS)}]",
        parser=_one_of(*ALL_PRECISIONS),
        help="Only this precision; may be repeated. Default: fp32 and fp16.",
        show_default=False,
    ),
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
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Build plans for a first trial: tuned for full batches alone, at optimization level 1 where TensorRT has "
        "levels, unless options say otherwise.",
    ),
]
Tf32Option = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--tf32/--no-tf32",
        help="Let a GPU's FP32 products round what they multiply to TF32's 10 bits: several times as fast, and not "
        "FP32. Default: no.",
        show_default=False,
    ),
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


def chosen_towers(named: list[str] | None) -> list[Tower]:
    """The encoders that were named, in their order; all if none was."""
    return [tower for tower in TOWERS if not named or tower in named]


def plan_settings(
    max_batch_size: int,
    context_length: int,
    image_profiles: list[str] | None,
    text_profiles: list[str] | None,
    workspace_mib: int | None,
    optimization_level: int | None,
    tf32: bool,
    fast: bool,
    tuned_length: int | None = None,
) -> PlanSettings:
    """Reads the settings of plans from options; `tuned_length` is theirs."""
    from cnclip_builder.plans.api import BuildOptions
    from cnclip_builder.plans.here import PlanSettings
    from cnclip_builder.plans.profiles import Profile

    return PlanSettings(
        max_batch_size,
        context_length,
        tuple(map(Profile.parse, image_profiles)) if image_profiles else None,
        tuple(map(Profile.parse, text_profiles)) if text_profiles else None,
        BuildOptions(workspace_mib, optimization_level, tf32, fast),
        tuned_length,
    )
