"""Chooses the server's three ports and finds out early whether they are free."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass

from cnclip_server._errors import PortInUse, ServerError

FLAGS = {"grpc": "--grpc-port", "http": "--http-port", "metrics": "--metrics-port"}


@dataclass(frozen=True)
class Ports:
    """The ports of gRPC, HTTP and the metrics; 0 means any free one until `resolved`."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002

    def resolved(self, host: str) -> Ports:
        """Replaces every 0 by a free port and checks that the others are free.

        Somebody may still take one between this and the server's own bind; the server's log then says so.

        Raises:
            PortInUse: One of them is taken.
            ServerError: The host is no address of this machine, or the port is not ours to open.
        """
        # All three are held until all three are known, or one of the free ones might be handed out twice.
        with contextlib.ExitStack() as held:
            found = {
                name: held.enter_context(_listen(host, getattr(self, name), flag)).getsockname()[1]
                for name, flag in FLAGS.items()
            }
        return Ports(**found)


def _listen(host: str, port: int, flag: str) -> socket.socket:
    """Binds a port as a server would."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Without it a port is refused for a minute after a server with open connections stopped; Triton sets it
    # too.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port, flag) from None
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); check --host and {flag}"
        ) from None
    except OverflowError:
        listener.close()
        raise ServerError(f"{port} is not a port; give {flag} a number from 0 to 65535") from None
    return listener
