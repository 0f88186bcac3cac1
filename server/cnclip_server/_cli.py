"""The command `cnclip-serve`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Annotated

import typer
from cnclip_console import Version, counted, option, plain_app, told, visible

from cnclip_server._errors import RepositoryError, ServerError, StartupFailed
from cnclip_server._folder import make_folder, told_by_name
from cnclip_server._manifest import MANIFEST, changed_files
from cnclip_server._process import how_it_ended, was_killed
from cnclip_server._renewals import Renewals
from cnclip_server._server import TritonServer
from cnclip_server._settings import Tls

app = plain_app()

# Options by the headings under which help shows them.
_listening, _security, _starting = (
    partial(option, panel=panel) for panel in ("Where it listens", "Who may ask", "How it starts, and starts again")
)
_FOLLOW_INTERVAL_S = 0.1
_WATCH_INTERVAL_S = 1.0
_MOST_SHOWN = 3
# Small models are there before anyone wonders.
_QUIET_S = 5.0


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="The model repository: a folder that cnclip-build wrote.")],
    extra: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- FLAGS]",
            help="After `--`: flags for tritonserver itself, such as --log-verbose=1.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, _listening("The address to listen on. 0.0.0.0 lets other machines in: Triton asks for no password.")
    ] = "127.0.0.1",
    grpc_port: Annotated[int, _listening("The port for gRPC, which `cnclip` talks to. 0 picks a free one.")] = 8001,
    http_port: Annotated[int, _listening("The port for HTTP. 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, _listening("The port for Prometheus metrics. 0 picks a free one.")] = 8002,
    tls_cert: Annotated[
        Path | None, _security("Encrypt gRPC with this certificate chain; HTTP then stays on loopback.", metavar="PEM")
    ] = None,
    tls_key: Annotated[Path | None, _security("The private key to --tls-cert.", metavar="PEM")] = None,
    client_ca: Annotated[
        Path | None, _security("Let in only clients with a certificate that this CA has signed.", metavar="PEM")
    ] = None,
    admin_key: Annotated[
        str | None,
        _security(
            "What opens Triton's shared-memory, trace and logging APIs. Default: nothing does.",
            metavar="KEY",
            envvar="CNCLIP_ADMIN_KEY",
            show_envvar=True,
        ),
    ] = None,
    tritonserver: Annotated[
        Path | None,
        _starting(
            "The tritonserver to run. Otherwise: $TRITONSERVER, the one on PATH, or the one inside the "
            "nvidia-pytriton package.",
            metavar="PATH",
        ),
    ] = None,
    startup_timeout: Annotated[float, _starting("How long the models may take to load.", metavar="SECONDS")] = 300.0,
    max_restarts: Annotated[
        int,
        _starting(
            "How often within --restart-window the server is started again when it or a model's process dies or hangs.",
            metavar="N",
            min=0,
        ),
    ] = 10,
    restart_window: Annotated[
        float, _starting("The time within which restarts count; older ones do not.", metavar="SECONDS", min=1)
    ] = 3600.0,
    changed: Annotated[
        bool,
        _starting("Serve files that differ from manifest.json, with a warning, rather than refuse.", "--serve-changed"),
    ] = False,
    verbose: Annotated[
        bool, option("Show tritonserver's log on stderr, and tracebacks of errors.", "--verbose", "-v")
    ] = False,
    version: Version = False,
) -> None:
    """Serve a model repository with NVIDIA's tritonserver, until Ctrl-C.

    When the models are loaded, the server's addresses and models are printed, one a line. Ctrl-C, or SIGTERM,
    stops the server in order and is a success (exit status 0); a server that does not start, or that dies or
    hangs again and again, is not (1).

    Examples:
      cnclip-serve build/repository
      cnclip-serve build/repository --host 0.0.0.0 --grpc-port 9001
      cnclip-serve build/repository -- --log-verbose=1
    """
    if extra and not extra[0].startswith("-"):
        raise typer.BadParameter(f"unexpected argument '{extra[0]}'; flags for tritonserver come after `--`")
    if (tls_cert is None) != (tls_key is None) or (client_ca and not tls_cert):
        raise typer.BadParameter("--tls-cert and --tls-key go together, and --client-ca with both")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _compare(repository, serve_anyway=changed)
        with contextlib.ExitStack() as stack:
            log_file = stack.enter_context(_shown_log()) if verbose else None
            tls = Tls(tls_cert, tls_key, client_ca) if tls_cert and tls_key else None
            server = TritonServer(
                repository,
                host=host,
                grpc_port=grpc_port,
                http_port=http_port,
                metrics_port=metrics_port,
                binary=tritonserver,
                extra_args=extra or (),
                tls=tls,
                admin_key=admin_key,
                startup_timeout_s=startup_timeout,
                log_file=log_file,
            )
            renewals = None if tls is None else Renewals(tls)
            with _telling_of_loading(repository, startup_timeout):
                stack.enter_context(server)
            _serve(server, max_restarts, restart_window, renewals)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except (ServerError, OSError) as error:
        if verbose:
            traceback.print_exc()
        print(f"error: {told(error)}", file=sys.stderr)
        raise typer.Exit(1) from None


def _compare(repository: Path, *, serve_anyway: bool) -> None:
    """Tells which files of a repository are not those that its manifest vouches for.

    Raises:
        RepositoryError: There are some, and they are not to be served.
    """
    if not (troubles := changed_files(repository)):
        return
    shown = "; ".join(troubles[:_MOST_SHOWN]) + (f"; {more} more" if (more := len(troubles) - _MOST_SHOWN) > 0 else "")
    if not serve_anyway:
        raise RepositoryError(
            repository,
            f"{repository} is not what its {MANIFEST} says: {shown}. Build or copy it again, or, if you made the "
            "change, serve it with --serve-changed",
            fix=None,
        )
    print(visible(f"warning: {repository} is not what its {MANIFEST} says: {shown}"), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _telling_of_loading(repository: Path, timeout_s: float) -> Iterator[None]:
    """Says after a while that models load yet: large ones take a minute, in which nothing else is said."""
    line = visible(f"{repository} is loading; waiting for it, for {timeout_s:g} s at most (--startup-timeout)")
    late = threading.Timer(_QUIET_S, print, [line], {"file": sys.stderr, "flush": True})
    late.start()
    try:
        yield
    finally:
        late.cancel()
        late.join()


def _serve(server: TritonServer, max_restarts: int, window_s: float, renewals: Renewals | None) -> None:
    """Says where the server is and what it serves, and waits; starts it again when it or a model has died or hangs.

    It does so for a renewed certificate, too, which counts as no restart.

    Raises:
        ServerError: The server has ended by itself, or would have to be started again too often.
    """
    print(f"grpc     {server.grpc_url}")
    print(f"http     http://{server.http_url}")
    print(f"metrics  http://{server.metrics_url}/metrics")
    for model in server.models():
        print(f"model    {model}")
    sys.stdout.flush()
    restarts: list[float] = []
    not_started = ""
    while not_started or (status := server.wait(_WATCH_INTERVAL_S)) is None or was_killed(status):
        if what := not_started or "; ".join(server.troubles()):
            if not not_started:  # starts that fail in a row all count, however long each took
                restarts = [at for at in restarts if time.monotonic() - at < window_s]
            if len(restarts) >= max_restarts:
                tried = counted(len(restarts), "restart")
                within_s = max([window_s, *(time.monotonic() - at for at in restarts)])
                raise ServerError(
                    f"{what}; gave up after {tried} (--max-restarts) within {within_s:.0f} s; run with -v to see why"
                )
            restarts.append(time.monotonic())
            print(f"{what}: restarting the server ({len(restarts)} of {max_restarts})", file=sys.stderr, flush=True)
        elif renewals is not None and renewals.are_there():
            print("the certificate was renewed: restarting the server", file=sys.stderr, flush=True)
        else:
            continue
        try:
            server.restart()
        except StartupFailed as error:  # such as one that is killed as it starts: what killed it before is there still
            not_started = str(error)
        else:
            not_started = ""
            print("the server is back", file=sys.stderr, flush=True)
    raise ServerError(f"tritonserver ended by itself ({how_it_ended(status)}); run with -v to see its log")


@contextlib.contextmanager
def _shown_log() -> Iterator[Path]:
    """Gives a file for tritonserver's log whose growth is copied to stderr, to its last line.

    It has lost its name already, and is found by our descriptor: whatever ends this process, nothing of it is left.
    """
    folder = make_folder()
    try:
        with told_by_name(folder):
            file = (folder / "tritonserver.log").open("a+b")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with file:
        ended = threading.Event()
        follower = threading.Thread(target=_follow, args=(file, ended))
        follower.start()
        try:
            yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        finally:
            ended.set()
            follower.join()


def _follow(file: IO[bytes], ended: threading.Event) -> None:
    """Copies a growing file to stderr until it has ended and everything is copied; it may be begun anew meanwhile."""
    last = False
    while True:
        if os.fstat(file.fileno()).st_size < file.tell():
            file.seek(0)
        if chunk := file.read():
            sys.stderr.write(chunk.decode("utf-8", errors="replace"))
            sys.stderr.flush()
        elif last:
            return
        last = ended.wait(_FOLLOW_INTERVAL_S)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM is what service managers and `docker stop` send: treated like Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of `cnclip-serve`."""
    app()
