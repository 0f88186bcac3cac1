"""The command `cnclip`, a module for each subcommand.

Exit status: 0 all went well; 1 some items could not be encoded (the others were printed); 2 wrong usage, or a file that
cannot be read; 3 the server or the model could not be had; 4 more items failed than --max-errors; 130 interrupted; 141
the reader of the output went away. docs/client.md has them for all five commands.
"""

from __future__ import annotations

from cnclip_console import Version, plain_app

from cnclip_client._cli._classify import classify
from cnclip_client._cli._dedup import dedup
from cnclip_client._cli._evaluate import evaluate
from cnclip_client._cli._extract import extract
from cnclip_client._cli._features import features
from cnclip_client._cli._index import index
from cnclip_client._cli._info import info
from cnclip_client._cli._search import search
from cnclip_client._cli._similarity import similarity

__all__ = ["app", "main"]

app = plain_app(
    name="cnclip",
    help="Reads Chinese-CLIP features of images and texts from a Triton server.\n\n"
    "Examples:\n"
    "  cnclip features texts 皮卡丘 杰尼龟\n"
    "  cnclip extract images photos/ --output photos.parquet\n"
    "  cnclip search --image-feats photos.parquet --text-feats texts.parquet",
    epilog="Exit status: 0 all well; 1 some items failed, the others were printed; 2 usage or a file; 3 server, model.",
    no_args_is_help=True,
)
app.add_typer(features, name="features")
app.add_typer(extract, name="extract")
app.add_typer(index, name="index")
app.command("similarity")(similarity)
app.command("info")(info)
app.command("search")(search)
app.command("evaluate")(evaluate)
app.command("dedup")(dedup)
app.command("classify")(classify)


def main() -> None:
    """Runs the command."""
    app()


@app.callback()
def _cnclip(version: Version = False) -> None:
    pass
