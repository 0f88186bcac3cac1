"""`cnclip-bench`: each comparison a command, and `all` for those that take minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from cnclip_builder.arch import official_archs

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
    """Run all of them save tune, which changes configs: some 15 minutes for ViT-B-16 on two cores."""
    subject: dict[str, Any] = {"arch": arch, "checkpoint": checkpoint}
    served_as: dict[str, Any] = {**subject, "repository": repository, "name": name, "output": output}
    items: dict[str, Any] = {"images": images, "captions": captions}
    own = repository == REPOSITORY and arch in {one.name for one in official_archs()}
    archs = list(dict.fromkeys(["RN50", arch])) if own else [arch]
    steps: tuple[Callable[[], None], ...] = (
        partial(tokenize, captions=captions, output=output),
        partial(preprocess, arch=arch, images=images, output=output),
        partial(served, **served_as, **items, rounds=5),
        partial(compare, **served_as, **items, items=8, rounds=3),
        partial(latency, **served_as, **items, batch_size=1, rounds=15),
        partial(latency, **served_as, **items, batch_size=8, rounds=3),
        partial(throughput, **served_as, **items, seconds=1.0, rounds=1),
        partial(stages, **served_as, **items, items=16),
        partial(savings, **served_as, **items, rounds=3),
        partial(int8, **subject, **items, output=output),
        partial(memory, **served_as, max_batch_size=[1, 8, 32]),
        *([partial(startup, archs=archs, checkpoint=checkpoint, repository=repository, output=output)] if own else []),
        *([partial(build, archs=archs, checkpoint=checkpoint, output=output)] if own else []),
    )
    began = time.monotonic()
    for number, step in enumerate(steps, start=1):
        typer.echo(f"{number} of {len(steps)}, after {time.monotonic() - began:.0f} s", err=True)
        step()


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
