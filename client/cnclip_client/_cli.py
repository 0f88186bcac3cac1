"""The command `cnclip`. The only module that imports typer.

Exit status: 0 all went well; 1 some items could not be encoded (the others were printed); 2 wrong usage; 3 the server
or the model could not be had; 130 interrupted; 141 the reader of the output went away.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from cnclip_client import BadInput, Block, Client, CnclipError, served_models
from cnclip_client import _render as render
from cnclip_client._similarity import logits_per_image, softmax

__all__ = ["app", "main"]

_SOME_FAILED, _USAGE, _SERVER, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 3, 130, 141

app = typer.Typer(
    name="cnclip",
    help="Reads Chinese-CLIP features of images and texts from a Triton server.",
    epilog="Exit status: 0 all well; 1 some items failed, the others were printed; 2 usage; 3 server or model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
features = typer.Typer(no_args_is_help=True, help="Print or save the features of images or texts.")
app.add_typer(features, name="features")

Url = Annotated[str, typer.Option(envvar="CNCLIP_URL", help="The server's gRPC address, host:port.")]
Model = Annotated[
    str | None,
    typer.Option(envvar="CNCLIP_MODEL", help="The served model; not needed where the server has only one."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, and show tracebacks of errors.")]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.npy|-",
        help="A float32 [N, D] .npy file, row i for item i (NaN where it failed); - is JSON lines on stdout.",
    ),
]
Normalize = Annotated[
    bool, typer.Option("--normalize/--no-normalize", help="Whether to divide each feature by its length.")
]
Listing = Annotated[str | None, typer.Option("--file", "-f", help="A file with one item a line; - is standard input.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the command."""
    # gRPC's C++ core otherwise writes lines of its own to stderr when a connection is lost.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"cnclip {version('cn-clip-triton')}")
        except PackageNotFoundError:
            typer.echo("cnclip (run from a source tree)")
        raise typer.Exit


@app.callback()
def _cnclip(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


@features.command("images")
def _features_images(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", help="Image files.", show_default=False)] = None,
    file: Listing = None,
    url: Url = "localhost:8001",
    model: Model = None,
    output: Output = "-",
    normalize: Normalize = True,
    verbose: Verbose = False,
) -> None:
    """Print the features of image files, one JSON object a line.

    Example: cnclip features images *.jpg > features.jsonl
    """
    with _reporting(verbose):
        if not paths and not file:
            raise typer.BadParameter("name image files, or a list of them with --file")
        _features("image", _items(paths, file), url, model, output, normalize)


@features.command("texts")
def _features_texts(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts.", show_default=False)] = None,
    file: Listing = None,
    url: Url = "localhost:8001",
    model: Model = None,
    output: Output = "-",
    normalize: Normalize = True,
    verbose: Verbose = False,
) -> None:
    """Print the features of texts, one JSON object a line; without TEXT those of standard input's lines.

    Example: cnclip features texts 皮卡丘 杰尼龟
    """
    with _reporting(verbose):
        _features("text", _items(texts, file), url, model, output, normalize)


@app.command("similarity")
def _similarity(
    image: Annotated[list[str], typer.Option(help="An image file; may be given many times.")],
    text: Annotated[list[str], typer.Option(help="A text; may be given many times.")],
    url: Url = "localhost:8001",
    model: Model = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Tell which of the texts fits each image best: probabilities over the texts, each image's best marked *.

    Prints a table on a terminal, tab-separated values elsewhere.

    Example: cnclip similarity --image a.jpg --text 皮卡丘 --text 杰尼龟
    """
    with _reporting(verbose), _client(url, model) as client:
        found = client.info
        encoded = client.encode_images(image, errors="collect")
        try:
            text_features = client.encode_texts(text)
        except BadInput as error:
            # Over fewer texts the probabilities would mean something else.
            for row, reason in error.rows.items():
                _complain(f"{text[row]}: {reason}")
            raise typer.Exit(_SOME_FAILED) from error
        for row, reason in encoded.failures.items():
            _complain(f"{image[row]}: {reason}")
        names = [image[row] for row in encoded.indices.tolist()]
        chances = softmax(logits_per_image(encoded.features, text_features, found.logit_scale))
        if as_json:
            _write(render.similarity_json(found.model, names, text, chances))
        elif sys.stdout.isatty():
            render.similarity_table(names, text, chances, sys.stdout)
        else:
            _write(render.similarity_tsv(names, text, chances))
        if encoded.failures:
            raise typer.Exit(_SOME_FAILED)


@app.command("info")
def _info(url: Url = "localhost:8001", model: Model = None, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Tell what a served model is: architecture, checkpoint, logit scale, sizes."""
    with _reporting(verbose), _client(url, model) as client:
        found = dataclasses.asdict(client.info)
        if as_json:
            _write((json.dumps(found) + "\n").encode())
        else:
            render.info_table(found.items(), sys.stdout)


def _features(
    kind: Literal["image", "text"],
    items: Iterable[str],
    url: str,
    model: str | None,
    output: str,
    normalize: bool,
) -> None:
    target = None if output == "-" else Path(output)
    if target is not None and (target.suffix != ".npy" or not target.parent.is_dir()):
        raise typer.BadParameter(f"--output {output}: write - or the path of an .npy file in an existing folder")
    # The bar must not run into data on the same terminal.
    shown = sys.stderr.isatty() and (target is not None or not sys.stdout.isatty())
    total = len(items) if isinstance(items, list) else None
    kept: list[NDArray[np.float32]] = []
    pending: deque[str] = deque()
    some_failed = False
    with _client(url, model) as client, render.progress(shown, total) as advance:
        source = _remember(items, pending)
        run = client.iter_images if kind == "image" else client.iter_texts
        for block in run(source, normalize=normalize):
            names = [pending.popleft() for _ in range(block.stop - block.start)]
            for row, reason in block.failures.items():
                some_failed = True
                _complain(f"{names[row - block.start]}: {reason}")
            if target is None:
                _write(_lines(kind, names, block))
            else:
                kept.append(block.filled())
            advance(len(names))
        if target is not None:
            none = client.encode_images([]) if kind == "image" else client.encode_texts([])
            render.save_npy(target, np.concatenate([none, *kept]))
    if some_failed:
        raise typer.Exit(_SOME_FAILED)


def _lines(kind: str, names: list[str], block: Block) -> bytes:
    rows = zip(block.indices.tolist(), block.features, strict=True)
    return b"".join(render.feature_line(kind, names[row - block.start], feature) for row, feature in rows)


def _items(given: list[str] | None, file: str | None) -> Iterable[str]:
    """Returns the arguments, or else the lines of a file or of standard input, read as they are needed."""
    if given and file:
        raise typer.BadParameter("give items or --file, not both")
    if given:
        return given
    if file in (None, "-"):
        if sys.stdin.isatty():
            _complain("reading lines from the terminal; end with Ctrl-D")
        return _read_lines(sys.stdin.buffer)
    try:
        return _read_lines(Path(str(file)).open("rb"))
    except OSError as error:
        raise typer.BadParameter(f"--file {file}: {error.strerror}") from error


def _read_lines(stream: io.BufferedIOBase | object) -> Iterator[str]:
    # Bytes that are no UTF-8 come through as surrogates and fail as one item, not as the whole file.
    with io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape") as lines:  # type: ignore[type-var]
        for line in lines:
            yield line.removesuffix("\n")


def _remember(items: Iterable[str], pending: deque[str]) -> Iterator[str]:
    for item in items:
        pending.append(item)
        yield item


def _client(url: str, model: str | None) -> Client:
    try:
        if model is None:
            slugs = served_models(url)
            if len(slugs) != 1:
                served = f"{len(slugs)} models: {', '.join(slugs)}" if slugs else "no Chinese-CLIP model"
                raise typer.BadParameter(f"{url} serves {served}; choose one with --model or CNCLIP_MODEL")
            model = slugs[0]
        return Client(url, model=model)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@contextmanager
def _reporting(verbose: bool) -> Iterator[None]:
    """Turns errors into one line on stderr and an exit status."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        yield
        sys.stdout.flush()
    except (CnclipError, OSError, KeyboardInterrupt) as error:
        if verbose:
            traceback.print_exc()
        raise typer.Exit(_status(error)) from error


def _status(error: BaseException) -> int:
    """Says what there is to say of an error and returns the exit status."""
    if isinstance(error, BrokenPipeError):
        # The interpreter would flush stdout once more as it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    _complain(str(error))
    return _SERVER if isinstance(error, CnclipError) else _USAGE


def _complain(message: str) -> None:
    line = f"cnclip: {message}".replace("\n", " ").encode("utf-8", "backslashreplace").decode()
    typer.echo(line, err=True)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
