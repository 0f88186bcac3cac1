"""The options that several commands share, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cnclip_console import option

from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.choose import choose_arch
from cnclip_builder.checkpoint.sources import Hub
from cnclip_builder.tensors import ALL_PRECISIONS, TOWERS, Tower

if TYPE_CHECKING:
    from cnclip_builder.plans.here import PlanSettings

# The headings under which help shows options.
MODEL, FILES, SERVED, LIMITS, SPEED, PLANS, BUILD = (
    "Which model",
    "Files and folders",
    "What serves it",
    "What requests may hold",
    "Throughput and latency",
    "TensorRT plans",
    "How it is built",
)


def _one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of several words; Typer itself takes no lists of them."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}.")
        return text

    return parse


VocabularyOption = Annotated[
    Path | None,
    option(
        "The vocab.txt of a text encoder whose tokens are not cn_clip's: a token a line. Default: the one in the "
        "checkpoint's folder, else cn_clip's.",
        panel=MODEL,
        exists=True,
        dir_okay=False,
    ),
]
DownloadRootOption = Annotated[
    Path,
    option(
        "Where official and random checkpoints are kept.", panel=FILES, envvar="CNCLIP_DOWNLOAD_ROOT", file_okay=False
    ),
]
HubOption = Annotated[Hub, option("Where the official checkpoint is downloaded from.", panel=MODEL)]
ArtefactsOption = Annotated[
    Path, option("Folder of the ONNX files; each model has a folder in it.", panel=FILES, file_okay=False)
]
TowersOption = Annotated[
    list[str] | None,
    option(
        "Only this encoder; may be given twice. Default: both.",
        panel=MODEL,
        metavar=f"[{'|'.join(TOWERS)}]",
        parser=_one_of(*TOWERS),
    ),
]
PrecisionsOption = Annotated[
    list[str] | None,
    option(
        "Only this precision; may be repeated. Default: fp32 and fp16.",
        panel=MODEL,
        metavar=f"[{'|'.join(ALL_PRECISIONS)}]",
        parser=_one_of(*ALL_PRECISIONS),
    ),
]
Tf32Option = Annotated[
    bool | None,
    option(
        "Let a GPU's FP32 products round what they multiply to TF32's 10 bits: several times as fast, and not FP32. "
        "Default: no.",
        panel=SERVED,
    ),
]
LeastInt8SpeedUpOption = Annotated[
    float,
    option(
        "How many times FP32's speed INT8 must reach on this machine; 0 to take it in any case, as when another "
        "machine is to serve it.",
        panel=BUILD,
        min=0,
    ),
]
VerboseOption = Annotated[bool, option("Show tracebacks and library logs.", "--verbose", "-v")]

DEFAULT_ARTEFACTS = Path("build/artefacts")
DEFAULT_REPOSITORY = Path("build/repository")
DEFAULT_DOWNLOAD_ROOT = Path("build/checkpoints")


def chosen_towers(named: list[str] | None) -> list[Tower]:
    """The encoders that were named, in their order; all if none was."""
    return [tower for tower in TOWERS if not named or tower in named]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model a command is about, and where its checkpoint is; `gives_options` gives them to the command."""

    arch: Annotated[
        str | None,
        option(
            "RN50, ViT-B-16, ViT-L-14, ViT-L-14-336 or ViT-H-14; or a .json file with the arguments of cn_clip's CLIP "
            "class. Default: what the tensors of --checkpoint tell; ViT-B-16 without one.",
            panel=MODEL,
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        option(
            "A pretrained or fine-tuned .pt or .safetensors file; a folder of Hugging Face's transformers; "
            "hf:OWNER/NAME, with @REVISION or without; or random:SEED for untrained weights. Default: the official "
            "checkpoint, downloaded.",
            panel=MODEL,
        ),
    ] = None
    vocabulary: VocabularyOption = None
    name: Annotated[str | None, option("Name of the served models. Default: the arch in lower case.", panel=MODEL)] = (
        None
    )
    hub: HubOption = "huggingface"
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT

    def choose_arch(self, *, fetch: bool = True) -> Arch:
        """Returns the architecture that they come to. Raises as `checkpoint.choose.choose_arch` does."""
        return choose_arch(self.arch, self.checkpoint, self.vocabulary, self.name, fetch=fetch)

    def served_name(self, arch: Arch) -> str:
        """Returns what a model of an architecture is called where it is served."""
        return self.name or arch.slug


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How TensorRT plans are built; `gives_options` gives them to a command."""

    image_profile: Annotated[
        list[str] | None,
        option(
            "What image plans are tuned for, batch=MIN:OPT:MAX; may be repeated. Default: one for a lone request, one "
            "for full batches.",
            panel=PLANS,
            metavar="PROFILE",
        ),
    ] = None
    text_profile: Annotated[
        list[str] | None,
        option("Likewise of text plans, batch=MIN:OPT:MAX,length=MIN:OPT:MAX.", panel=PLANS, metavar="PROFILE"),
    ] = None
    workspace_mib: Annotated[
        int | None,
        option("Most GPU memory for a kernel's scratch, in MiB. Default: all there is.", panel=PLANS, metavar="MIB"),
    ] = None
    optimization_level: Annotated[
        int | None,
        option("TensorRT's, 0 (fast to build) to 5 (fast to run). Default: its own, 3.", panel=PLANS, metavar="LEVEL"),
    ] = None
    fast: Annotated[
        bool,
        option(
            "Build plans for a first trial: tuned for full batches alone, at optimization level 1 where TensorRT has "
            "levels, unless options say otherwise.",
            "--fast",
            panel=PLANS,
        ),
    ] = False

    def given(self) -> list[str]:
        """The options that the command line names."""
        return [f"--{field.name.replace('_', '-')}" for field in fields(self) if getattr(self, field.name)]

    def settings(
        self, max_batch_size: int, context_length: int, tf32: bool, tuned_length: int | None = None
    ) -> PlanSettings:
        """Returns the settings of plans that they come to; the arguments are theirs."""
        from cnclip_builder.plans.api import BuildOptions
        from cnclip_builder.plans.here import PlanSettings
        from cnclip_builder.plans.profiles import Profile

        return PlanSettings(
            max_batch_size,
            context_length,
            tuple(map(Profile.parse, self.image_profile)) if self.image_profile else None,
            tuple(map(Profile.parse, self.text_profile)) if self.text_profile else None,
            BuildOptions(self.workspace_mib, self.optimization_level, tf32, self.fast),
            tuned_length,
        )
