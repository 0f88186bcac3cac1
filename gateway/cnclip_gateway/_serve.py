"""Runs the gateway until it is told to end."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from cnclip_gateway._protocol import protocol
from cnclip_gateway._settings import Settings

__all__ = ["listening", "serve", "server_of"]

_log = logging.getLogger(__name__)

_BACKLOG = 2048
# How long a renewed certificate may lie there before it is looked at; uvicorn looks at its clock once a second.
_RENEWAL_S = 8
_LAST_ANSWERS_S = 10

_FIXES = {
    errno.EADDRINUSE: "choose another --port, or 0 for any free one",
    errno.EACCES: "choose a --port from 1024 on, for those below are root's",
}


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Args:
        host: The address.
        port: 0 picks a free one.

    Raises:
        OSError: It cannot listen there.
    """
    # With its protocol named: only then does asyncio send what is small at once, which otherwise waits for 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        fix = _FIXES.get(error.errno or 0, "check --host")
        raise OSError(error.errno, f"{error.strerror}; {fix}", f"{host}:{port}") from error
    except BaseException:
        made.close()
        raise
    return made


def server_of(app: ASGIApp, settings: Settings, tls: tuple[Path, Path] | None, verbose: bool) -> uvicorn.Server:
    """Returns a server.

    Args:
        app: The application.
        settings: Its bounds.
        tls: The certificate chain and its key; None for plain HTTP.
        verbose: Whether each request is logged.

    Raises:
        OSError: A file of `tls` cannot be read, or they are not a certificate chain and its key.
    """
    if tls is not None:
        _require_usable(*tls)
    config = uvicorn.Config(
        app,
        http=protocol(settings.sender_s, settings.connections),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.INFO if verbose else logging.WARNING,
        access_log=verbose,
        server_header=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
        ssl_certfile=str(tls[0]) if tls else None,
        ssl_keyfile=str(tls[1]) if tls else None,
    )
    config.load()
    if tls is not None and config.ssl is not None:
        config.callback_notify, config.timeout_notify = _renewing(config.ssl, *tls), _RENEWAL_S
    return uvicorn.Server(config)


def _require_usable(certificate: Path, key: Path) -> None:
    """Raises OSError for files that cannot be read, or are not a certificate chain and its key."""
    for file in (certificate, key):
        file.open("rb").close()  # OpenSSL does not say which one it cannot open
    try:
        # With a wrong password: without one OpenSSL would ask for it on the terminal, where nobody may sit.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "-")
    except ssl.SSLError as error:
        raise OSError(
            f"{certificate} and {key} cannot be used together ({error.strerror or error}); give a certificate, those "
            "that it rests on behind it, and its own key without a passphrase"
        ) from error


def _renewing(context: ssl.SSLContext, certificate: Path, key: Path) -> Callable[[], Awaitable[None]]:
    """Returns what looks whether the certificate's files were replaced, and has new connections get the new one.

    It is for the event loop: OpenSSL crashes where a handshake meets a context that another thread is changing.
    """
    taken = _stamps(certificate, key)

    async def look() -> None:
        nonlocal taken
        if (now := _stamps(certificate, key)) == taken:
            return
        taken = now
        try:
            _require_usable(certificate, key)  # else the context would be left with one half of a pair
            context.load_cert_chain(certificate, key)
        except OSError as error:
            _log.warning("the renewed certificate is not taken, the one before stays: %s", error)

    return look


def _stamps(*files: Path) -> list[tuple[int, int, int] | None]:
    """What changes with a file's content, links followed; None for one that is not there at this moment."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            stat = file.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append(None)
    return found


def serve(server: uvicorn.Server, host: str, port: int) -> None:
    """Serves until Ctrl-C or SIGTERM, and prints the address on stdout once it listens.

    Raises:
        OSError: It cannot listen there.
        KeyboardInterrupt: It was told to end.
    """
    with listening(host, port) as taken:
        signal.signal(signal.SIGTERM, _interrupt)
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if server.config.is_ssl else "http"
        print(f"gateway  {scheme}://{shown}:{taken.getsockname()[1]}", flush=True)
        server.run(sockets=[taken])


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM is what service managers send: treated like Ctrl-C. uvicorn raises both anew once it has ended."""
    raise KeyboardInterrupt
