"""What stands before Triton: proxies that answer for themselves, and that share requests among several servers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from cnclip_client import (
    AccessDenied,
    Client,
    CnclipError,
    ModelChanged,
    Retry,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    Timeout,
)

QUICK = Retry(first_delay_s=0.01, max_delay_s=0.02, attempts=100, connect_attempts=3)
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _ACKNOWLEDGED, _END_HEADERS = 1, 1, 4


class Front:
    """Speaks HTTP/2 and no gRPC: it answers every request with one status, as nginx does for itself.

    Attributes:
        asked: How many requests have come.
    """

    def __init__(self, status: str) -> None:
        self.asked = 0
        self._headers = b"\x08\x03" + status.encode()  # HPACK: the name of entry 8, :status, and a value of 3 bytes
        self._has_page = status == "200"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        def send(kind: int, flags: int, stream: int = 0, payload: bytes = b"") -> None:
            connection.sendall(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

        with connection, connection.makefile("rb") as coming, contextlib.suppress(OSError, struct.error):
            coming.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            send(_SETTINGS, 0)
            while True:
                high, low, kind, flags, stream = struct.unpack(">BHBBI", coming.read(9))
                coming.read(high << 16 | low)
                if kind == _SETTINGS and not flags & _ACKNOWLEDGED:
                    send(_SETTINGS, _ACKNOWLEDGED)
                elif kind == _HEADERS:
                    self.asked += 1
                    send(_HEADERS, _END_HEADERS | (0 if self._has_page else _END_STREAM), stream, self._headers)
                    if self._has_page:
                        send(_DATA, _END_STREAM, stream, b"<html>Log in</html>")

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def front() -> Iterator[Callable[[str], Front]]:
    started: list[Front] = []

    def start(status: str) -> Front:
        started.append(Front(status))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize(
    ("status", "error", "words", "asked"),
    [
        ("200", ServerError, "serves no gRPC there", 1),
        ("302", ServerError, "serves no gRPC there", 1),
        ("400", ServerError, "refuses the request .*--client-cert", 1),
        ("401", AccessDenied, "what stands before Triton .* denies access .*--token-file", 1),
        ("403", AccessDenied, "what stands before Triton .* denies access .*--token-file", 1),
        ("404", ServerError, "serves no gRPC there", 1),
        ("413", ServerError, "no request of this size .*client_max_body_size", 1),
        ("429", ServerBusy, "takes no more requests .*--in-flight", 3),
        ("500", ServerUnreachable, "worker_connections", 3),
        ("502", ServerUnreachable, "no answer from the server behind it", 3),
        ("503", ServerUnreachable, "no server for a request", 3),
        ("504", ServerUnreachable, "grpc_read_timeout", 3),
    ],
)
def test_a_proxys_own_answer_is_told_as_such_and_asked_for_again_if_it_passes(
    front: Callable[[str], Front], status: str, error: type[CnclipError], words: str, asked: int
) -> None:
    proxy = front(status)
    with Client(proxy.url, model="vit-b-16", retry=QUICK) as client:
        with pytest.raises(error, match=words) as caught:
            client.encode_texts(["a"])
    assert f"at {proxy.url} " in str(caught.value)
    assert f"(HTTP {status})" in str(caught.value)
    assert proxy.asked == asked


def test_a_server_of_http_1_is_told_as_such() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"127.0.0.1:{server.server_port}", model="vit-b-16", retry=QUICK) as client:
            with pytest.raises(ServerUnreachable, match="does not speak HTTP/2.*not HTTP's 8000"):
                client.encode_texts(["a"])
        server.shutdown()


@pytest.mark.parametrize(("status", "code"), [("429", "UNAVAILABLE"), ("500", "UNKNOWN"), ("504", "UNAVAILABLE")])
def test_a_proxy_without_room_gets_fewer_requests_at_once(triton: Any, fake: Any, status: str, code: str) -> None:
    refused = []

    def before(attempt: int, items: list[bytes]) -> None:
        if triton.under_way > 1:
            refused.append(attempt)
            raise fake.Fault(grpc.StatusCode[code], f"Received http2 header with status: {status}")
        time.sleep(0.002)

    triton.before_infer = before
    items = [f"text {number}" for number in range(200)]
    with Client(triton.url, model="vit-b-16", retry=QUICK) as client:
        found = client.encode_texts(items, normalize=False, batch_size=2)
    np.testing.assert_array_equal(found, np.stack([fake.features_of(item.encode()) for item in items]))
    assert len(refused) < 30


def _served_in_turn(triton: Any, fake: Any) -> Callable[[], None]:
    """Returns what puts the other one of two models there that differ in their checkpoints."""
    turns = itertools.cycle([fake.both("vit-b-16", sha="b" * 64), fake.both("vit-b-16")])

    def turn() -> None:
        triton.models = {model.name: model for model in next(turns)}

    return turn


def test_two_models_behind_one_address_are_noticed_before_anything_is_sent(triton: Any, fake: Any) -> None:
    triton.before_config = _served_in_turn(triton, fake)
    with Client(triton.url, model="vit-b-16") as client:
        with pytest.raises(ModelChanged, match="at every server behind this address"):
            client.encode_texts(["a"])
    assert triton.requests == []


@pytest.mark.parametrize(
    "call", [lambda client: client.encode_texts(["a"] * 10, batch_size=1), lambda client: client.require_unchanged()]
)
def test_another_model_that_joins_behind_an_address_is_noticed(
    triton: Any, fake: Any, call: Callable[[Client], object]
) -> None:
    """What is asked once may be asked of the right one."""
    with Client(triton.url, model="vit-b-16") as client:
        client.encode_texts(["a"])
        triton.before_config = turn = _served_in_turn(triton, fake)
        turn()
        with pytest.raises(ModelChanged):
            call(client)


def test_a_proxy_that_answers_once_in_a_while_is_enough(triton: Any, fake: Any) -> None:
    asked: list[int] = []

    def busy() -> None:
        asked.append(1)
        if len(asked) % 2 == 0:
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 503")

    triton.before_config = busy
    with Client(triton.url, model="vit-b-16", retry=QUICK) as client:
        assert client.encode_texts(["a"] * 10, batch_size=1).shape == (10, 16)


def test_what_is_asked_again_is_asked_all_at_once(serve: Callable[..., Any], fake: Any) -> None:
    """One after the other, four servers at 50 ms held each call up for two seconds."""
    servers = [serve(*fake.both("vit-b-16")) for _ in range(2)]
    with Client([server.url for server in servers], model="vit-b-16", timeout=Timeout(connect_s=20)) as client:
        client.encode_texts(["a"])
        firsts, others = threading.Barrier(2, timeout=10), threading.Barrier(14, timeout=10)
        turns = itertools.count()
        for server in servers:
            server.before_config = lambda: (firsts if next(turns) < 2 else others).wait() and None
        client.require_unchanged()
    assert next(turns) == 16
