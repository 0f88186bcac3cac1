"""`cnclip features`: features on stdout or in one .npy file, for as many items as fit into memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from cnclip_console import option, plain_app
from numpy.typing import NDArray

from cnclip_client import Block
from cnclip_client._cli import _render as render
from cnclip_client._cli._progress import has_room, progress
from cnclip_client._cli._shared import Normalize, as_typed, items_given, require_unread, write
from cnclip_client._replacing import replacing
from cnclip_client._vocabulary import Kind
from cnclip_client.command_line import SOME_FAILED, Server, Verbose, asks_server_for, complain, reporting

__all__ = ["features"]

features = plain_app(
    no_args_is_help=True,
    help="Print or save the features of images or texts.\n\nExample:\n  cnclip features texts 皮卡丘 杰尼龟",
)

Output = Annotated[
    str,
    option(
        "A float32 [N, D] .npy file, row i for item i (NaN where it failed); - is JSON lines on stdout.",
        "--output",
        "-o",
        metavar="FILE.npy|-",
    ),
]
Listing = Annotated[str | None, option("A file with one item a line; - is standard input.", "--file", "-f")]


@features.command("images")
@asks_server_for("images", "files")
def _features_images(
    server: Server,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", help="Image files.", show_default=False)] = None,
    file: Listing = None,
    output: Output = "-",
    normalize: Normalize = True,
    verbose: Verbose = False,
) -> None:
    """Print the features of image files, one JSON object a line.

    Example:
      cnclip features images *.jpg > features.jsonl
    """
    with reporting(verbose):
        if not paths and not file:
            raise typer.BadParameter("name image files, or a list of them with --file")
        require_unread(output, [file, *(paths or ())])
        _features("image", items_given(paths, file), server, output, normalize)


@features.command("texts")
@asks_server_for("texts")
def _features_texts(
    server: Server,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts.", show_default=False)] = None,
    file: Listing = None,
    output: Output = "-",
    normalize: Normalize = True,
    preprocess: Annotated[
        bool, option("Lower case and straight quotation marks, as `extract texts` has them.", "--preprocess")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Print the features of texts, one JSON object a line; without TEXT those of standard input's lines.

    Example:
      cnclip features texts 皮卡丘 杰尼龟
    """
    with reporting(verbose):
        require_unread(output, [file])
        _features("text", items_given(as_typed(texts or ()), file), server, output, normalize, preprocess)


def _features(
    kind: Kind, items: Iterable[str], server: Server, output: str, normalize: bool, preprocess: bool = False
) -> None:
    target = None if output == "-" else Path(output)
    if target is not None and (target.suffix != ".npy" or not target.parent.is_dir()):
        raise typer.BadParameter(f"--output {output}: write - or the path of an .npy file in an existing folder")
    total = len(items) if isinstance(items, list) else None
    kept: list[NDArray[np.float32]] = []
    pending: deque[str] = deque()
    done = failures = 0
    with server.connect() as client, progress(has_room(output), lambda: total) as report:
        report(0, 0)
        # Of a list the client reads well ahead, and it can be looked up.
        source = items if isinstance(items, list) else _remember(items, pending)
        run = client.iter_images if kind == "image" else partial(client.iter_texts, preprocess=preprocess)
        for block in run(source, normalize=normalize):
            rows = range(block.start, block.stop)
            names = items[rows.start : rows.stop] if isinstance(items, list) else [pending.popleft() for _ in rows]
            for row, reason in block.failures.items():
                complain(f"{names[row - block.start]}: {reason}")
            if target is None:
                write(_lines(kind, names, block))
            else:
                kept.append(block.filled())
            done, failures = done + len(names), failures + len(block.failures)
            report(done, failures)
        if target is not None:
            none = client.encode_images([]) if kind == "image" else client.encode_texts([])
            with replacing(target) as out:
                features = np.concatenate([none, *kept])
                # Not np.save, which wants to seek: a pipe can't.
                known = np.lib.format.header_data_from_array_1_0(features)  # type: ignore[no-untyped-call]
                np.lib.format.write_array_header_1_0(out, known)  # type: ignore[no-untyped-call]
                out.write(features.data)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _lines(kind: str, names: list[str], block: Block) -> bytes:
    rows = zip(block.indices.tolist(), block.features, strict=True)
    return b"".join(render.feature_line(kind, names[row - block.start], feature) for row, feature in rows)


def _remember(items: Iterable[str], pending: deque[str]) -> Iterator[str]:
    for item in items:
        pending.append(item)
        yield item
