"""`cnclip info`: what a served model is."""

from __future__ import annotations

import dataclasses
import json

from cnclip_client._cli import _render as render
from cnclip_client._cli._shared import AsJson, write
from cnclip_client.command_line import Server, Verbose, asks_about_server, reporting

__all__ = ["info"]


@asks_about_server
def info(server: Server, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Tell what a served model is: architecture, checkpoint, logit scale, sizes.

    Example:
      cnclip info --url localhost:8001
    """
    with reporting(verbose), server.connect(prepare="auto") as client:
        found = dataclasses.asdict(client.info)
        if as_json:
            write((json.dumps(found) + "\n").encode())
        else:
            render.info_table(found.items())
