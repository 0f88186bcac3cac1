"""Chooses the server's three ports and finds out early whether they are free."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from cnclip_server._errors import PortInUse, ServerError

FLAGS = {"grpc": "--grpc-port", "http": "--http-port", "metrics": "--metrics-port"}


@dataclass(frozen=True)
class Ports:
    """The ports of gRPC, HTTP and the metrics; 0 means any free one, chosen by `held`."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002

    @contextlib.contextmanager
    def held(self, host: str) -> Iterator[Ports]:
        """Replaces every 0 by a free port and checks that the others are free.

        Within the context the system gives these ports to nobody who asks for any free one. Somebody who asks for one
        by its number may still take it before the server does; the server's log then says so.

        Raises:
            PortInUse: One of them is taken.
            ServerError: The host is no address of this machine, or the port is not ours to open.
        """
        if not host or ":" in host:
            raise ServerError(f"cannot listen on '{host}'; give --host an IPv4 address, or a name, of this machine")
        with contextlib.ExitStack() as held:
            found = {
                name: held.enter_context(_hold(host, getattr(self, name), flag)).getsockname()[1]
                for name, flag in FLAGS.items()
            }
            yield Ports(**found)


def _hold(host: str, port: int, flag: str) -> socket.socket:
    """Binds a port without listening on it: a server that sets SO_REUSEADDR, as Triton does, can have it still."""
    with contextlib.ExitStack() as opened:
        try:
            holder = opened.enter_context(_bound(host, port))
            # Only who listens finds out whether another listens.
            with _bound(host, holder.getsockname()[1]) as listener:
                listener.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(host, port, flag) from None
            fix = f"check --host and {flag}"
            if error.errno == errno.EACCES:
                fix = f"give {flag} a number from 1024 on, for those below are root's"
            raise ServerError(f"cannot listen on {host}:{port} ({error.strerror or error}); {fix}") from None
        except OverflowError:
            raise ServerError(f"{port} is not a port; give {flag} a number from 0 to 65535") from None
        opened.pop_all()
        return holder


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Without it a port is refused for a minute after a server with open connections stopped.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
