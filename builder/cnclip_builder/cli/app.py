"""`cnclip-build`: the stages of a build, each as a command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import typer
from cnclip_console import Version, plain_app, told

from cnclip_builder.cli.charset import use_utf8
from cnclip_builder.cli.compare import compare_features
from cnclip_builder.cli.publishing import prune, publish
from cnclip_builder.cli.repository import repository
from cnclip_builder.cli.show import show
from cnclip_builder.cli.stages import archs, checkpoint, onnx, tensorrt
from cnclip_builder.cli.verify import verify
from cnclip_builder.errors import BuildError
from cnclip_builder.system.isolation import configure_logging
from cnclip_builder.system.secrets import without_secrets

app = plain_app(
    name="cnclip-build",
    help="Takes a Chinese-CLIP checkpoint to a Triton model repository.\n\n"
    "Most users want `repository`, which does everything. `cnclip-build COMMAND --help` tells of each.\n\n"
    "Example:\n"
    "  cnclip-build repository --arch ViT-B-16 --verify",
    no_args_is_help=True,
)
_INTERRUPTED = 130  # Typer ends so by itself, and without a word
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "From checkpoint to servers": (repository, show, verify, compare_features, publish, prune),
    "Stages of `repository`, each by itself": (archs, checkpoint, onnx, tensorrt),
}
for heading, commands in _COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=heading)(command)


@app.callback()
def _options(version: Version = False) -> None:
    pass


def main() -> None:
    """Runs the command. An error is one line on stderr and exit status 1, Ctrl-C one and 130; `-v` adds a traceback."""
    use_utf8()
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    configure_logging(logging.INFO if verbose else logging.WARNING)
    try:
        app()
    except (BuildError, OSError, ModuleNotFoundError) as error:
        if verbose:
            logging.getLogger(__name__).exception("the build failed")
        missing = isinstance(error, ModuleNotFoundError)
        install = ": pip install 'cn-clip-triton[builder,cpu]', or [builder,gpu] for a GPU, installs what a build needs"
        fix = install if missing else ""
        typer.echo(without_secrets(f"error: {told(error)}{fix}"), err=True)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            typer.echo("interrupted; what was there before is untouched", err=True)
        raise
