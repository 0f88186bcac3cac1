"""The options that several commands have, and where things go by default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cnclip_bench.subject import OWN_REPOSITORY

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")

ArchOption = Annotated[str, typer.Option(help="The architecture, or a .json file, as for cnclip-build.")]
CheckpointOption = Annotated[str, typer.Option(help="A .pt file, or random:SEED.")]
RepositoryOption = Annotated[
    Path, typer.Option(help="The model repository; one that has the model is only measured, any other is built.")
]
NameOption = Annotated[
    str | None, typer.Option(help="Name of the served models. Default: the arch in lower case.", show_default=False)
]
ImagesOption = Annotated[Path | None, typer.Option(help="A folder of images. Default: the builder's samples.")]
CaptionsOption = Annotated[Path | None, typer.Option(help="A file of texts, one a line. Default: the builder's.")]
TowerOption = Annotated[Tower | None, typer.Option(help="Only this one. Default: both.", show_default=False)]
RoundsOption = Annotated[int, typer.Option(min=1, help="How often each thing is measured.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Rows a batch.")]
ItemsOption = Annotated[int, typer.Option(min=1, help="Images, and four times as many texts, a round.")]
OutputOption = Annotated[Path, typer.Option(help="Where JSON and plots go.")]

RANDOM, REPOSITORY, OUTPUT = "random:0", OWN_REPOSITORY, Path("build/benchmarks")
