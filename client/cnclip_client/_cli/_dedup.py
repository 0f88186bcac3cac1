"""`cnclip dedup`: near duplicates among the items of an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from cnclip_console import counted, option

from cnclip_client._cli._progress import stages
from cnclip_client._cli._retrieval import IndexParameters
from cnclip_client._cli._shared import require_unread, writing
from cnclip_client._float32 import rounded
from cnclip_client.command_line import Verbose, complain, reporting, usage
from cnclip_client.index import Index, near_duplicates

__all__ = ["dedup"]


def dedup(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="What `cnclip index` made.")],
    cosine: Annotated[float, option("How near is too near.", min=-1.0, max=1.0)],
    output: Annotated[str, option("The groups; - is stdout.", "--output", "-o", metavar="FILE.jsonl|-")] = "-",
    index_parameters: IndexParameters = None,
    verbose: Verbose = False,
) -> None:
    """Find items that are as near as a cosine, and tell which to keep and which to drop.

    Prints a JSON line for each that has near duplicates: {"kept": ID, "dropped": [ID, ...], "cosines": [...]}. An item
    is dropped if it is that near to an earlier one that is kept. The features are read from the files that the index
    was made of.

    Example:
      cnclip dedup photos.index --cosine 0.96 -o duplicates.jsonl
    """
    with reporting(verbose), usage(), stages() as report, Index.open(index) as opened:
        if index_parameters is not None:
            opened.parameters = index_parameters
        require_unread(output, [index, *(part.path for part in opened.record.parts)])
        dropped = groups = 0
        with writing(output) as file:
            for group in near_duplicates(opened, cosine, report):
                line = {"kept": group.kept, "dropped": group.dropped, "cosines": rounded(group.cosines)}
                file.write(json.dumps(line) + "\n")
                dropped += len(group.dropped)
                groups += 1
        complain(
            f"{dropped:,} of {counted(len(opened), 'item')} as near as {cosine:g} to an earlier one, in "
            f"{counted(groups, 'group')}; {len(opened) - dropped:,} kept"
        )
