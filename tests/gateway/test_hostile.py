"""Requests that nobody sends in good faith: each is refused soon, holds little, and leaves the gateway as it was."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from cnclip_gateway import _protocol

from tests.client.conftest import FakeTriton
from tests.gateway.conftest import Answer, Running

MIB = 1024 * 1024


@contextmanager
def connected(gateway: Running) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=30)) as connection:
        yield connection


def head(size: int | None, path: str = "/v1/embeddings") -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode()


def read_answer(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the gateway ends the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def require_sound(gateway: Running) -> None:
    """It answers as ever, and holds nothing."""
    assert gateway.embed("x").status == 200
    assert gateway.metric("cnclip_gateway_held_bytes") == 0
    assert gateway.metric("cnclip_gateway_requests_under_way") == 1  # this one


def test_a_body_that_says_it_is_huge_is_not_read(gateway: Running) -> None:
    for size in (33 * MIB, 10**15, 10**18 - 1):
        with connected(gateway) as connection:
            connection.sendall(head(size))
            answer = read_answer(connection)
            assert (answer.status, answer.error["code"]) == (413, "too_large"), size
            assert "larger than 32 MiB; send fewer" in answer.error["message"]
    require_sound(gateway)


def test_openais_client_is_told_that_it_sends_too_much(run: Callable[..., Running], triton: FakeTriton) -> None:
    """It sends all of its body before it reads an answer."""
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    gateway = run(triton.url, body_bytes=MIB)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError, match="larger than 1 MiB") as error:
            client.embeddings.create(model="vit-b-16", input="data:image/png;base64," + "A" * (8 * MIB))
    assert error.value.status_code == 413
    require_sound(gateway)


def test_a_body_that_does_not_say_its_size_is_read_up_to_the_bound(
    run: Callable[..., Running], triton: FakeTriton
) -> None:
    gateway = run(triton.url, body_bytes=MIB)
    with connected(gateway) as connection:
        connection.sendall(head(None))
        chunk = b"10000\r\n" + b"A" * 65536 + b"\r\n"
        sender = threading.Thread(target=_send_for_ever, args=(connection, chunk))
        sender.start()
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        connection.shutdown(socket.SHUT_RDWR)
        sender.join(30)
    require_sound(gateway)


def _send_for_ever(connection: socket.socket, chunk: bytes) -> None:
    try:
        while True:
            connection.sendall(chunk)
    except OSError:
        pass


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": ' + b"[" * 200_000,
        b'{"input": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"input": ' + b"9" * 100_000 + b"}",
        b'{"input": 1e999999999}',
        b'{"input": "\xff"}',
    ],
    ids=["open lists", "deep lists", "deep objects", "a long number", "a huge number", "no UTF-8"],
)
def test_json_that_is_meant_to_break_a_parser(gateway: Running, body: bytes) -> None:
    answer = gateway.ask("POST", "/v1/embeddings", body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert ("not UTF-8" in answer.error["message"]) == (b"\xff" in body)
    require_sound(gateway)


def test_json_that_grows_as_it_is_parsed_counts_as_what_it_grows_to(
    run: Callable[..., Running], triton: FakeTriton
) -> None:
    gateway = run(triton.url, held_bytes=32 * MIB)
    body = json.dumps({"model": "vit-b-16", "input": [[]] * 400_000}, separators=(",", ":")).encode()
    assert len(body) < 2 * MIB
    answer = gateway.ask("POST", "/v1/embeddings", body)
    assert (answer.status, answer.error["code"]) == (413, "too_large")  # not 503: it would be sent again and again
    require_sound(gateway)


def test_ten_thousand_items(gateway: Running, triton: FakeTriton) -> None:
    answer = gateway.embed(["x"] * 10_000)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "too_many_items", "input")
    assert "send 2048 at most" in answer.error["message"]
    assert triton.requests == []
    assert gateway.embed(["x"] * 2048).status == 200
    require_sound(gateway)


def test_all_requests_together_hold_so_much_and_no_more(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, body_bytes=MIB, held_bytes=2 * MIB)
    part = b'{"input": "' + b"A" * (MIB - 100)
    with connected(gateway) as first, connected(gateway) as second, connected(gateway) as third:
        for connection in (first, second, third):
            connection.sendall(head(MIB) + part)
        answers = [b"", b"", b""]
        # Two fit; whoever comes last is told to come again.
        deadline = time.monotonic() + 30
        while not any(answers) and time.monotonic() < deadline:
            for number, connection in enumerate((first, second, third)):
                connection.settimeout(0.1)
                try:
                    answers[number] = connection.recv(65536)
                except TimeoutError:
                    continue
        (told,) = [answer for answer in answers if answer]
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2" in told
    deadline = time.monotonic() + 30
    while gateway.metric("cnclip_gateway_held_bytes") and time.monotonic() < deadline:
        time.sleep(0.05)
    require_sound(gateway)


def test_compressed_bodies_are_not_unpacked(gateway: Running) -> None:
    answer = gateway.ask("POST", "/v1/embeddings", b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    assert (answer.status, answer.error["code"]) == (415, "content_encoding")


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/embeddings HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000], ids=repr
)
def test_who_does_not_send_a_request_is_cut_off(run: Callable[..., Running], triton: FakeTriton, sent: bytes) -> None:
    gateway = run(triton.url, sender_s=0.2)
    with connected(gateway) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""
    require_sound(gateway)


def test_so_is_who_goes_on_a_letter_at_a_time(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, sender_s=0.3)
    with connected(gateway) as connection:
        ended = threading.Event()

        def dribble() -> None:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\n")
                while not ended.wait(0.02):
                    connection.sendall(b"a")
            except OSError:
                pass

        sender = threading.Thread(target=dribble)
        sender.start()
        try:
            assert read_all(connection) == b""
        finally:
            ended.set()
            sender.join(30)
    require_sound(gateway)


def test_a_body_that_does_not_end_is_told_so(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, sender_s=0.2)
    with connected(gateway) as connection:
        connection.sendall(head(1000) + b'{"input"')
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"slow_sender" in received
    require_sound(gateway)


def test_a_connection_is_kept_for_the_next_request_and_that_must_come_in_time_too(
    run: Callable[..., Running], triton: FakeTriton
) -> None:
    gateway = run(triton.url, sender_s=1.0)
    with connected(gateway) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).status == 200
            time.sleep(1.5)  # longer than a request may take: nothing is arriving
        connection.sendall(b"GET /health/live HT")
        assert read_all(connection) == b""


def test_who_does_not_read_the_answer_is_cut_off(run: Callable[..., Running], serve: Any) -> None:
    from tests.client.conftest import both

    gateway = run(serve(*both("vit-b-16", dimension=1024)).url, sender_s=0.3)
    body = json.dumps({"model": "vit-b-16", "input": [f"{n}" for n in range(2048)]}).encode()
    with connected(gateway) as connection:
        connection.sendall(head(len(body)) + body)
        deadline = time.monotonic() + 60
        counted = 'cnclip_gateway_requests_total{route="/v1/embeddings",status="200"}'
        while not gateway.metric(counted) and time.monotonic() < deadline:
            time.sleep(0.05)
        # Some 25 MB were to come; what the kernel had taken is all that does.
        time.sleep(0.6)
        assert len(read_all(connection)) < 20 * MIB
    require_sound(gateway)


def test_more_connections_than_there_may_be_are_turned_away(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, connections=5)
    held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(9)]

    def ask(connection: socket.socket, path: str) -> Answer:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return read_answer(connection)

    try:
        told = ask(held[-1], "/v1/models")
        assert (told.status, told.error["code"]) == (503, "too_many_connections")
        assert (told.headers["Retry-After"], told.headers["Connection"]) == ("2", "close")
        assert told.headers["X-Content-Type-Options"] == "nosniff"
        # Who was there before goes on, and nobody takes for dead what is only busy.
        for _ in range(2):
            assert ask(held[0], "/v1/models").status == 200
        for connection, path in zip(held[5:8], ("/health/live", "/health", "/metrics"), strict=True):
            assert ask(connection, path).status == 200, path
        assert gateway.metric('cnclip_gateway_requests_total{route="/v1/models",status="503"}') == 1
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 30
    while gateway.ask("GET", "/health/live").status != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    require_sound(gateway)


def test_a_connection_too_many_that_says_nothing_is_cut_soon(
    run: Callable[..., Running], triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_protocol, "_BEYOND_S", 0.2)
    gateway = run(triton.url, connections=1)
    with connected(gateway) as first, connected(gateway) as second:
        assert read_all(second) == b""
        first.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(first).status == 200


def test_what_takes_too_long_is_not_waited_for(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, time_limit_s=0.3)
    assert gateway.embed("warm").status == 200
    released = threading.Event()
    triton.before_infer = lambda attempt, items: released.wait(30) and None
    try:
        answer = gateway.embed("x")
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert answer.headers["Retry-After"] == "2"
        assert gateway.ask("GET", "/health/live").status == 200
    finally:
        triton.before_infer = lambda attempt, items: None
        released.set()
    require_sound(gateway)


def test_half_requests_and_nonsense_leave_it_sound(gateway: Running) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"A" * 200_000):
        with connected(gateway) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection)[:13] in (b"", b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")
    with connected(gateway) as connection:
        connection.sendall(head(1000) + b"{")  # and goes
    require_sound(gateway)
