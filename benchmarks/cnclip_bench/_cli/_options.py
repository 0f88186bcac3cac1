"""The options that several commands have, and where things go by default."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from cnclip_bench.subject import OWN_REPOSITORY, Subject, make_subject

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")

ArchOption = Annotated[
    str | None,
    typer.Option(
        help="The architecture, or a .json file, as for cnclip-build. Default: the checkpoint's; of random weights "
        "ViT-B-16.",
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    str, typer.Option(help="A .pt file, a folder of transformers, hf:OWNER/NAME, or random:SEED, as for cnclip-build.")
]
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line says of what is measured; `of_a_subject` gives a command its options."""

    arch: ArchOption = None
    checkpoint: CheckpointOption = RANDOM
    repository: RepositoryOption = REPOSITORY
    name: NameOption = None
    images: ImagesOption = None
    captions: CaptionsOption = None

    def subject(self) -> Subject:
        """Returns it, made and read. Raises as `make_subject` does."""
        return make_subject(self.arch, self.checkpoint, self.repository, self.name, self.images, self.captions)


def of_a_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Asked`, before its own, and hands them over as its parameter `asked`.

    Typer reads a command's options off its signature; this one's has `asked` written out.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "asked"
    ]
    shared = {option.name: option.default for option in fields(Asked)}
    types = get_type_hints(Asked, include_extras=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in shared.items()
    ]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        asked = {name: given.pop(name, default) for name, default in shared.items()}
        command(asked=Asked(**asked), **given)

    wrapper.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*options, *own]}
    return wrapper
