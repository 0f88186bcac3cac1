"""`cnclip similarity`: which of some texts fits an image best."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from cnclip_console import option

from cnclip_client import BadInput
from cnclip_client._cli import _render as render
from cnclip_client._cli._shared import AsJson, as_typed, write
from cnclip_client._similarity import logits_per_image, softmax
from cnclip_client.command_line import SOME_FAILED, Server, Verbose, asks_server_for, complain, reporting

__all__ = ["similarity"]


@asks_server_for("images", "texts")
def similarity(
    server: Server,
    image: Annotated[list[str], option("An image file; may be given many times.")],
    text: Annotated[list[str], option("A text; may be given many times.")],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Tell which of the texts fits each image best: probabilities over the texts, each image's best marked *.

    Prints a table on a terminal, tab-separated values elsewhere.

    Example:
      cnclip similarity --image a.jpg --text 皮卡丘 --text 杰尼龟
    """
    with reporting(verbose), server.connect() as client:
        found, text = client.info, as_typed(text)
        encoded = client.encode_images(image, errors="collect")
        try:
            text_features = client.encode_texts(text)
        except BadInput as error:
            # Over fewer texts the probabilities would mean something else.
            for row, reason in error.rows.items():
                complain(f"{text[row]}: {reason}")
            raise typer.Exit(SOME_FAILED) from error
        for row, reason in encoded.failures.items():
            complain(f"{image[row]}: {reason}")
        names = [image[row] for row in encoded.indices.tolist()]
        chances = softmax(logits_per_image(encoded.features, text_features, found.logit_scale))
        if as_json:
            write(render.similarity_json(found.model, names, text, chances))
        elif sys.stdout.isatty():
            render.similarity_table(names, text, chances)
        else:
            write(render.similarity_tsv(names, text, chances))
        if encoded.failures:
            raise typer.Exit(SOME_FAILED)
