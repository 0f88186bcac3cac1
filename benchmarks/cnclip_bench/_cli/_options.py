"""The options that several commands have, and where things go by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnclip_builder.tensors import Tower
from cnclip_console import gives_options, option

from cnclip_bench.subject import OWN_REPOSITORY, Subject, make_subject

# The heading under which help shows these.
_MEASURED = "What is measured"

ArchOption = Annotated[
    str | None,
    option(
        "The architecture, or a .json file, as for cnclip-build. Default: the checkpoint's, or ViT-B-16.",
        panel=_MEASURED,
    ),
]
CheckpointOption = Annotated[
    str,
    option(
        "A .pt file, a folder of transformers, hf:OWNER/NAME, or random:SEED, as for cnclip-build.", panel=_MEASURED
    ),
]
RepositoryOption = Annotated[
    Path, option("The model repository; one that has the model is only measured, any other is built.", panel=_MEASURED)
]
NameOption = Annotated[
    str | None, option("Name of the served models. Default: the arch in lower case.", panel=_MEASURED)
]
ImagesOption = Annotated[Path | None, option("A folder of images. Default: the builder's samples.", panel=_MEASURED)]
CaptionsOption = Annotated[Path | None, option("A file of texts, one a line. Default: the builder's.", panel=_MEASURED)]
TowerOption = Annotated[Tower | None, option("Only this one. Default: both.")]
RoundsOption = Annotated[int, option("How often each thing is measured.", min=1)]
BatchOption = Annotated[int, option("Rows a batch.", min=1)]
ItemsOption = Annotated[int, option("Images, and four times as many texts, a round.", min=1)]
OutputOption = Annotated[Path, option("Where JSON and plots go.")]

RANDOM, REPOSITORY, OUTPUT = "random:0", OWN_REPOSITORY, Path("build/benchmarks")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line says of what is measured; `of_a_subject` gives a command its options."""

    arch: ArchOption = None
    checkpoint: CheckpointOption = RANDOM
    repository: RepositoryOption = REPOSITORY
    name: NameOption = None
    images: ImagesOption = None
    captions: CaptionsOption = None

    def subject(self, *, served: bool = True) -> Subject:
        """Returns it, made and read; `served` is, and it raises, as `make_subject` has it."""
        return make_subject(
            self.arch,
            self.checkpoint,
            self.repository,
            name=self.name,
            images=self.images,
            captions=self.captions,
            served=served,
        )


of_a_subject = gives_options(Asked, "asked")
"""Gives a command the options of `Asked`, and hands them over as its parameter `asked`."""
