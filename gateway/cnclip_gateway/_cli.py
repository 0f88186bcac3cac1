"""The command `cnclip-gateway`."""

from __future__ import annotations

import codecs
import os
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cnclip_client import BadFile, Client, Retry, served_models
from cnclip_client.command_line import Server, Verbose, asks_server_for, reporting, require, usage
from cnclip_console import Version, counted, option, plain_app

from cnclip_gateway._settings import MIB, Settings

if TYPE_CHECKING:
    from cnclip_client.report import Pictures

    from cnclip_gateway._models import Models
    from cnclip_gateway._search import Searcher

__all__ = ["app", "main"]

app = plain_app()

# Options by the headings under which help shows them.
_listening, _searching, _bound = (
    partial(option, panel=panel) for panel in ("Where it listens, and to whom", "The page to search with", "Bounds")
)
_DEFAULT = Settings()


@app.command()
@asks_server_for("images", "texts")
def gateway(
    server: Server,
    host: Annotated[str, _listening("The address to listen on. 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, _listening("The port. 0 picks a free one.", min=0, max=65_535)] = 8080,
    api_key_file: Annotated[
        Path | None,
        _listening(
            "Keys, one a line; callers send one as Authorization: Bearer. CNCLIP_API_KEY holds one itself. "
            "Without any, all are let in.",
            metavar="FILE",
            envvar="CNCLIP_API_KEY_FILE",
        ),
    ] = None,
    tls_cert: Annotated[Path | None, _listening("Speak HTTPS with this certificate chain.", metavar="PEM")] = None,
    tls_key: Annotated[Path | None, _listening("The private key to --tls-cert.", metavar="PEM")] = None,
    index: Annotated[
        Path | None,
        _searching(
            "What `cnclip index` made, or image features that `cnclip extract` wrote: serve a page that searches.",
            metavar="PATH",
        ),
    ] = None,
    images: Annotated[
        str | None, _searching("The pictures to show: what `cnclip extract images` read.", metavar="SOURCE")
    ] = None,
    preprocess: Annotated[
        bool,
        option(
            "Prepare texts as `cnclip extract texts` does: lower case, straight quotation marks.",
            "--preprocess/--no-preprocess",
        ),
    ] = _DEFAULT.preprocess,
    fetch_from: Annotated[
        list[str] | None,
        _bound(
            "Fetch images from this host's http: and https: addresses; may be given many times. Default: none.",
            metavar="HOST[:PORT]",
        ),
    ] = None,
    max_items: Annotated[int, _bound("Most items of a request.", min=1)] = _DEFAULT.max_items,
    body_mib: Annotated[int, _bound("Most MiB of a request.", min=1)] = _DEFAULT.body_bytes // MIB,
    held_mib: Annotated[int, _bound("Most MiB of all requests at once.", min=1)] = _DEFAULT.held_bytes // MIB,
    time_limit: Annotated[
        float, _bound("How long an answer may take.", metavar="SECONDS", min=0.001)
    ] = _DEFAULT.time_limit_s,
    sender_timeout: Annotated[
        float,
        _bound(
            "How long a caller may take to send a request, or to go on reading an answer.", metavar="SECONDS", min=0.001
        ),
    ] = _DEFAULT.sender_s,
    concurrency: Annotated[int, _bound("Requests worked on at once; others wait.", min=1)] = _DEFAULT.concurrency,
    connections: Annotated[int, _bound("Most connections; others are turned away.", min=1)] = _DEFAULT.connections,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Serve features over HTTP in the form of OpenAI's API, and a page to search pictures with, until Ctrl-C.

    POST /v1/embeddings takes texts and images; /docs says how. It holds no model: a Triton server that
    cnclip-serve started, or several, have them.

    Examples:
      cnclip-gateway --url localhost:8001
      cnclip-gateway --index photos.index --images photos/ --port 8080
    """
    with reporting(verbose, "cnclip-gateway"), usage(), ExitStack() as stack:
        if (tls_cert is None) != (tls_key is None):
            raise typer.BadParameter("--tls-cert and --tls-key go together")
        if images and index is None:
            raise typer.BadParameter("--images are for the page; say with --index what it searches")
        if held_mib <= body_mib:
            raise typer.BadParameter(
                "--held-mib must be more than --body-mib, or none of that size could come in, nor be fetched"
            )
        for module in ("starlette", "uvicorn", "prometheus_client"):
            require(module, extra="gateway")
        from cnclip_gateway._app import Gateway
        from cnclip_gateway._serve import serve, server_of

        settings = Settings(
            keys=_keys(api_key_file),
            hosts=tuple(map(_host, fetch_from or ())),
            preprocess=preprocess,
            max_items=max_items,
            body_bytes=body_mib * MIB,
            held_bytes=held_mib * MIB,
            time_limit_s=time_limit,
            sender_s=sender_timeout,
            concurrency=concurrency,
            connections=connections,
        )
        models = _models(server, time_limit)
        searcher = _searcher(index, models, preprocess, stack) if index else None
        pictures = _pictures(images) if images else None
        tls = (tls_cert, tls_key) if tls_cert and tls_key else None
        try:
            serve(server_of(Gateway(models, settings, searcher, pictures).app(), settings, tls, verbose), host, port)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)


def _models(server: Server, time_limit_s: float) -> Models:
    """Returns what is served; nothing is asked yet. Raises as `Server.credentials` does."""
    from cnclip_gateway._models import Models

    credentials = server.credentials()
    # Connects to nothing, and finds out that an address is none before anybody asks.
    Client(server.url, model=server.model or "any", credentials=credentials).close()
    # What nobody waits for any more need not be tried again.
    retry = Retry(deadline_s=min(time_limit_s / 3, Retry().deadline_s))
    server = replace(server, request_timeout=min(server.request_timeout, time_limit_s))
    return Models(
        lambda slug: replace(server, model=slug).connect(retry=retry),
        lambda: served_models(server.url, retry=retry, credentials=credentials),
        server.model,
    )


def _searcher(index: Path, models: Models, preprocess: bool, stack: ExitStack) -> Searcher:
    from cnclip_gateway._search import Searcher, open_searched

    searched = open_searched(index, stack)
    print(f"searched {counted(len(searched), 'picture')} of {index}", flush=True)
    return Searcher(searched, models, preprocess)


def _pictures(images: str) -> Pictures:
    from cnclip_client.report import Pictures
    from cnclip_client.sources import image_source

    began = time.monotonic()
    pictures = Pictures(image_source(images))
    print(f"pictures of {images}: their ids read in {time.monotonic() - began:.1f} s", flush=True)
    return pictures


def _host(named: str) -> str:
    """Returns what --fetch-from names, if it is a host as addresses have it: any other would just never be met.

    Raises:
        typer.BadParameter: It is none.
    """
    if not re.fullmatch(r"[\w.-]+(:\d+)?|[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F.:]*", named):
        raise typer.BadParameter(
            f"--fetch-from {named} is no HOST or HOST:PORT; name each host, without http:// or a path"
        )
    return named


def _keys(file: Path | None) -> tuple[bytes, ...]:
    """Returns the keys of a file, or that of the environment.

    Raises:
        BadFile: The file holds none, or cannot be read.
        typer.BadParameter: The variable holds blanks alone: whoever set it meant to let nobody in without a key.
    """
    if file is None:
        named = os.environ.get("CNCLIP_API_KEY", "")
        if named and not named.strip():
            raise typer.BadParameter("CNCLIP_API_KEY is blank; put the key in it, or unset it to let all in")
        return (os.fsencode(named.strip()),) if named else ()
    try:
        data = file.read_bytes().removeprefix(codecs.BOM_UTF8)  # an editor of Windows begins with it
        keys = tuple(line.strip() for line in data.splitlines() if line.strip())
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror}); it is to hold keys", path=str(file)) from error
    if not keys:
        raise BadFile("holds no key; write one a line, or leave out --api-key-file to let all in", path=str(file))
    return keys


def main() -> None:
    """Entry point of `cnclip-gateway`."""
    app()
