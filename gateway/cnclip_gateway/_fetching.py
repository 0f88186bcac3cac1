"""Pictures at addresses of http: and https:, from hosts that whoever runs the gateway has named, and no others.

A named host's addresses must be public: its name is looked up once, what was found is checked, and that is connected
to, so that no name that changes meanwhile leads inside. Redirects are not followed.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import SplitResult, quote, urlsplit

from cnclip_gateway._bodies import Held
from cnclip_gateway._errors import NotNow
from cnclip_gateway._items import Address, Item

__all__ = ["Fetcher"]

_THREADS = 16
_EACH_S = 10.0
_PORTS = {"http": 80, "https": 443}
_CHUNK = 64 * 1024
_HEADERS = {"User-Agent": "cnclip-gateway", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
# What an address may have as it is; the percent sign too, since what it quotes is quoted already.
_SAFE = "/%:@!$&'()*+,;=~-._?"
# All of IPv6 that is given out to the public. Outside of it are private addresses, those of older systems, and those
# that hold an IPv4 address for a translator to connect to; inside of it are the tunnels 6to4 and Teredo.
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")


class Fetcher:
    """Gets pictures. Threads may share it.

    Args:
        hosts: `host`, for the ports 80 and 443, or `host:port`.
        most_bytes: Of all pictures of a request together.
        seconds: That all of them together may take.
        held: Counts what is there of them.
    """

    def __init__(self, hosts: Sequence[str], most_bytes: int, seconds: float, held: Held) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._held = held
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
        self._tls = ssl.create_default_context()

    @contextmanager
    def filled(self, items: list[Item | Address]) -> Iterator[list[Item]]:
        """Gives the items with what is at their addresses, or why it cannot be had, in the addresses' place.

        What was fetched counts as held until the context ends.

        Raises:
            NotNow: All requests together hold too much, or nothing more can be fetched at present.
        """
        budget = _Budget(self._most_bytes, time.monotonic() + self._seconds, self._held)
        try:
            fetched = [
                self._pool.submit(self._fetch, one.url, budget) if isinstance(one, Address) else one for one in items
            ]
            yield [one if isinstance(one, str | bytes | ValueError) else one.result() for one in fetched]
        finally:
            budget.end()

    def close(self) -> None:
        """Begins no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, url: str, budget: _Budget) -> bytes | ValueError:
        try:
            parts, port = self._allowed(url)
            left_s = min(budget.deadline - time.monotonic(), _EACH_S)
            if left_s <= 0:
                raise ValueError("was not fetched: there was no time left; send fewer addresses")
            host = parts.hostname or ""
            return self._get(
                parts, socket.create_connection((public_address(host, port), port), left_s), left_s, budget
            )
        except ValueError as reason:
            return reason
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise NotNow("the gateway has no room for more connections; try again", code="server_busy") from error
            return ValueError(f"could not be fetched ({type(error).__name__}); send its bytes")

    def _allowed(self, url: str) -> tuple[SplitResult, int]:
        """Returns the parts of an address that may be fetched, and its port."""
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)  # raises ValueError of one that is none
        names = {f"{parts.hostname}:{port}"} | ({f"{parts.hostname}"} if port in _PORTS.values() else set())
        if not parts.hostname or parts.username is not None or not names & self._hosts:
            raise ValueError("is an address that this gateway does not fetch from; send the image's bytes as base64")
        return parts, port

    def _get(self, parts: SplitResult, raw: socket.socket, seconds: float, budget: _Budget) -> bytes:
        # A socket's own timeout is for each read: a host that sends a byte now and then would never meet it.
        connected = _Cut(raw, seconds)
        with ExitStack() as stack:
            stack.callback(connected.close)
            if parts.scheme == "https":
                connected.wrap(self._tls, parts.hostname or "")
            connection = stack.enter_context(closing(http.client.HTTPConnection(parts.netloc)))
            connection.sock = connected.socket
            path = quote(parts.path or "/", safe=_SAFE)
            query = "?" + quote(parts.query, safe=_SAFE) if parts.query else ""
            connection.request("GET", path + query, headers=_HEADERS)
            body = _body(stack.enter_context(connection.getresponse()), budget)
        if connected.cut:  # what was cut looks as if it had ended
            raise ValueError("took too long to be fetched; send its bytes")
        return body


class _Cut:
    """A connection that is cut after a time, whatever it is doing.

    Attributes:
        socket: The connection.
        cut: Whether it was.
    """

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self.socket = connected
        self.cut = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def wrap(self, context: ssl.SSLContext, host: str) -> None:
        """Speaks TLS from now on. Raises OSError."""
        # In two steps: a handshake can be cut only at the socket that took the other's place.
        self.socket = context.wrap_socket(self.socket, server_hostname=host, do_handshake_on_connect=False)
        self.socket.do_handshake()

    def close(self) -> None:
        """Closes it, and cuts it no more."""
        self._timer.cancel()
        self.socket.close()

    def _end(self) -> None:
        self.cut = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class _Budget:
    """What all pictures of a request may take together."""

    def __init__(self, most_bytes: int, deadline: float, held: Held) -> None:
        self.deadline = deadline
        self._left = most_bytes
        self._held = held
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise ValueError("is too large, or all addresses of the request together are; send fewer")
            self._taken += self._held.take(count)

    def end(self) -> None:
        """Gives back what was taken; what is under way yet ends at its next piece."""
        with self._lock:
            self._left = -1
            self._held.take(-self._taken)


def public_address(host: str, port: int) -> str:
    """Returns a public address of a host.

    Raises:
        ValueError: One of its addresses is not public.
        OSError: It is not found.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise ValueError("has no host that could be looked up; send the image's bytes as base64") from None
    addresses = [str(one[4][0]) for one in found]
    if not all(map(_is_public, addresses)):
        raise ValueError("leads to an address that is not public; send the image's bytes as base64")
    return addresses[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address not in _PUBLIC_IPV6 or address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def _body(response: http.client.HTTPResponse, budget: _Budget) -> bytes:
    if response.status != http.client.OK:
        raise ValueError(f"answers {response.status}; give the address of the image itself")
    parts: list[bytes] = []
    while part := response.read(_CHUNK):
        budget.take(len(part))
        parts.append(part)
    if response.length:
        raise ValueError("ended before its end; send its bytes")
    return b"".join(parts)
