"""`cnclip-bench`: each comparison a command, and `all` for those that take minutes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from cnclip_bench._cli._alternatives import compare
from cnclip_bench._cli._costs import build, memory, startup
from cnclip_bench._cli._encoders import latency, preprocess, served, stages, tokenize
from cnclip_bench._cli._load import throughput, tune
from cnclip_bench._cli._options import (
    OUTPUT,
    RANDOM,
    REPOSITORY,
    ArchOption,
    CaptionsOption,
    CheckpointOption,
    ImagesOption,
    NameOption,
    OutputOption,
    RepositoryOption,
)
from cnclip_bench._cli._savings import int8, savings

app = typer.Typer(
    name="cnclip-bench",
    help="Measures encoders, and what is served around them, side by side in one run.\n\n"
    "A repository is built where there is none. Tables go to stdout, JSON and a plot of each to --output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(served, compare, latency, throughput, stages, preprocess, tokenize),
    *(savings, int8, build, startup, memory, tune),
)
for command in _COMMANDS:
    app.command()(command)


@app.command("all")
def everything(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    name: NameOption = None,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    output: OutputOption = OUTPUT,
) -> None:
    """Run all of them save tune, which changes configs."""
    given = (arch, checkpoint, repository, name, images, captions)
    tokenize(captions, 10, output)
    preprocess(arch, images, 10, output)
    for batch_size, rounds in ((1, 20), (8, 8)):
        latency(*given, batch_size, rounds, output)
    served(*given, 48, 8, 6, output)
    compare(*given, 24, 8, 3, output)
    throughput(*given, [1, 4], [1, 8], 2.0, 1, output)
    stages(*given, 48, output)


def main() -> None:
    """Runs the command. What goes wrong is one line on stderr and exit status 1."""
    from cnclip_builder.errors import BuildError

    try:
        app()
    except (BuildError, OSError, ValueError, ModuleNotFoundError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        fix = ": pip install 'cn-clip-triton[builder,server,bench]' installs all that is measured" if missing else ""
        print(f"error: {error}{fix}", file=sys.stderr)
        sys.exit(1)
