"""Runs the gateway until it is told to end."""

from __future__ import annotations

import logging
import signal
import socket
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from cnclip_gateway._protocol import protocol
from cnclip_gateway._settings import Settings

__all__ = ["serve"]

_BACKLOG = 2048
_LAST_ANSWERS_S = 10


def serve(app: ASGIApp, settings: Settings, host: str, port: int, tls: tuple[Path, Path] | None, verbose: bool) -> None:
    """Serves until Ctrl-C or SIGTERM, and prints the address on stdout once it listens.

    Args:
        app: The application.
        settings: Its bounds.
        host: The address to listen on.
        port: 0 picks a free one.
        tls: The certificate chain and its key.
        verbose: Whether each request is logged.

    Raises:
        OSError: It cannot listen there, or a file of `tls` cannot be used.
    """
    listening = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
    )
    with listening:
        config = uvicorn.Config(
            app,
            http=protocol(settings.sender_s),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level=logging.INFO if verbose else logging.WARNING,
            access_log=verbose,
            server_header=False,
            limit_concurrency=settings.connections,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
            ssl_certfile=str(tls[0]) if tls else None,
            ssl_keyfile=str(tls[1]) if tls else None,
        )
        config.load()
        signal.signal(signal.SIGTERM, _interrupt)
        shown = f"[{host}]" if ":" in host else host
        print(f"gateway  http{'s' if tls else ''}://{shown}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM is what service managers send: treated like Ctrl-C. uvicorn raises both anew once it has ended."""
    raise KeyboardInterrupt
