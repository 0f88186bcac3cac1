"""`cnclip-bench`: each comparison a command, and `all` for those that take minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from cnclip_builder.arch import official_archs
from cnclip_console import Version, plain_app, told

from cnclip_bench._cli._alternatives import compare
from cnclip_bench._cli._costs import build, memory, startup
from cnclip_bench._cli._encoders import latency, preprocess, served, stages, tokenize
from cnclip_bench._cli._gateway import gateway
from cnclip_bench._cli._gpu_report import gpu_report
from cnclip_bench._cli._host import host
from cnclip_bench._cli._index import index
from cnclip_bench._cli._jobs import jobs
from cnclip_bench._cli._load import throughput, tune
from cnclip_bench._cli._options import (
    OUTPUT,
    REPOSITORY,
    Asked,
    OutputOption,
    of_a_subject,
)
from cnclip_bench._cli._preparation import preparation
from cnclip_bench._cli._savings import int8, savings
from cnclip_bench.subject import arch_option

app = plain_app(
    name="cnclip-bench",
    help="Measures encoders, and what is served around them, side by side in one run.\n\n"
    "A repository is built where there is none. Tables go to stdout, JSON and a plot of each to --output.\n\n"
    "Example:\n"
    "  cnclip-bench all --arch ViT-B-16",
    no_args_is_help=True,
)


@app.callback()
def _bench(version: Version = False) -> None:
    pass


_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "What is served, side by side": (served, compare, latency, throughput, preparation, stages),
    "What is done for it": (preprocess, host, tokenize, savings, int8),
    "What it costs": (build, startup, memory, jobs, index, gateway),
    "This machine": (gpu_report, tune),
}
for _heading, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_heading)(_command)


@app.command("all", rich_help_panel="This machine")
@of_a_subject
def everything(asked: Asked, output: OutputOption = OUTPUT) -> None:
    """Run all save jobs, index, gateway, gpu-report and tune, which changes configs: some 15 minutes on two cores.

    Example:
      cnclip-bench all --arch ViT-B-16 --checkpoint epoch_latest.pt
    """
    arch = arch_option(asked.arch, asked.checkpoint, asked.name)
    built: dict[str, Any] = {"checkpoint": asked.checkpoint, "output": output}
    items: dict[str, Any] = {"images": asked.images, "captions": asked.captions}
    model: dict[str, Any] = {"arch": arch, "repository": asked.repository, "name": asked.name, **built}
    whole = {**model, **items}
    own = asked.repository == REPOSITORY and arch in {one.name for one in official_archs()}
    archs = list(dict.fromkeys(["RN50", arch])) if own else [arch]
    steps: tuple[Callable[[], None], ...] = (
        partial(tokenize, captions=asked.captions, output=output),
        partial(preprocess, arch=arch, images=asked.images, output=output),
        partial(host, arch=arch, images=asked.images, output=output),
        partial(served, **whole, rounds=5),
        partial(compare, **whole, items=8, rounds=3),
        partial(latency, **whole, batch_size=1, rounds=15),
        partial(latency, **whole, batch_size=8, rounds=3),
        partial(throughput, **whole, seconds=1.0, rounds=1),
        partial(preparation, **whole, items=16, rounds=3),
        partial(stages, **whole, items=16),
        partial(savings, **whole, rounds=3),
        partial(int8, arch=arch, **built, **items),
        partial(memory, **model, max_batch_size=[1, 8, 32]),
        *([partial(startup, archs=archs, repository=asked.repository, **built)] if own else []),
        *([partial(build, archs=archs, **built)] if own else []),
    )
    began = time.monotonic()
    for number, step in enumerate(steps, start=1):
        typer.echo(f"{number} of {len(steps)}, after {time.monotonic() - began:.0f} s", err=True)
        step()


def main() -> None:
    """Runs the command. What goes wrong is one line on stderr and exit status 1."""
    try:
        app()
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError)
        if not missing and not isinstance(error, _told()):
            raise
        install = ": pip install 'cn-clip-triton[builder,server,bench,cpu]' installs all that is measured"
        fix = install if missing else ""
        print(f"error: {told(error)}{fix}", file=sys.stderr)
        sys.exit(1)


def _told() -> tuple[type[Exception], ...]:
    """What is raised with words for whoever measures."""
    # Here, since help is to come at once.
    from cnclip_builder.errors import BuildError
    from cnclip_client import CnclipError
    from cnclip_server import ServerError

    return BuildError, CnclipError, ServerError, OSError, RuntimeError, ValueError
