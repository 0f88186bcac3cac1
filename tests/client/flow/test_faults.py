"""Servers that go away, come back, are replaced, vanish, hang or are full: what comes of a run through each."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from cnclip_client import (
    Client,
    CnclipError,
    Limits,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    RequestTimeout,
    Retry,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    Timeout,
)
from cnclip_client._flow.vouching import vouch

QUICK = Retry.patient(20)
ITEMS = [f"text {number}" for number in range(400)]


def connect(url: str, **options: Any) -> Client:
    return Client(url, model="vit-b-16", **{"retry": QUICK, **options})


def expected(fake: Any, items: list[str]) -> np.ndarray:
    return np.stack([fake.features_of(item.encode()) for item in items])


class Proxy:
    """Passes bytes on, until told to do otherwise.

    Attributes:
        held: Set where nothing passes any more, in either direction, while connections stay open.
        ended: Set once a connection has been closed by either side.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []
        self.held = threading.Event()
        self.ended = threading.Event()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self.connections += 1
            # Those that came before the hold stay cut off; a new connection takes another way.
            held = self.held = threading.Event()
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target, held), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, held: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if not held.is_set():
                    target.sendall(data)
            self.ended.set()
            if not held.is_set():
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self) -> None:
        """Breaks every connection, in the middle of whatever is on its way."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # a close alone would not wake the thread that reads
            one.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy(triton: Any) -> Iterator[Proxy]:
    running = Proxy(triton.port)
    yield running
    running.close()


@pytest.mark.parametrize("away_s", [0.0, 1.0])
def test_a_server_killed_in_the_middle_and_started_again(triton: Any, fake: Any, away_s: float) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.005)
    with connect(triton.url) as client:
        stream = client.iter_texts(ITEMS, normalize=False, batch_size=4)
        blocks = [next(stream)]
        triton.stop()
        back = threading.Timer(away_s, triton.start)
        back.start()
        blocks += stream
        back.join()
    assert [row for block in blocks for row in block.indices.tolist()] == list(range(len(ITEMS)))
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), expected(fake, ITEMS))


def test_connections_that_break_again_and_again_cost_nothing(triton: Any, fake: Any, proxy: Proxy) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.002)
    stop = threading.Event()

    def break_them() -> None:
        while not stop.wait(0.15):
            proxy.cut()

    breaking = threading.Thread(target=break_them)
    breaking.start()
    try:
        with connect(proxy.url) as client:
            found = client.encode_texts(ITEMS * 2, normalize=False, batch_size=4)
    finally:
        stop.set()
        breaking.join()
    assert proxy.connections > 2
    np.testing.assert_array_equal(found, expected(fake, ITEMS * 2))


def test_a_peer_that_vanishes_is_noticed_before_the_deadline(triton: Any, proxy: Proxy) -> None:
    """No FIN, no RST: a host without power. Only a ping that is not answered tells."""
    with connect(proxy.url, timeout=Timeout(connect_s=0.5, request_s=6)) as client:
        client.encode_texts(["a"])
        proxy.held.set()
        started = time.monotonic()
        assert client.encode_texts(["b"]).shape == (1, 16)
        assert 0.5 < time.monotonic() - started < 5
    assert proxy.connections == 2


def test_an_idle_connection_is_closed_before_others_forget_it(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a balancer does without a word: it would be a peer that vanishes."""
    monkeypatch.setattr("cnclip_client._connection.transport._IDLE_MS", 1000)
    with connect(proxy.url) as client:
        client.encode_texts(["a"])
        assert proxy.ended.wait(20)
        client.encode_texts(["b"])
    assert proxy.connections == 2


def test_a_response_that_never_comes(triton: Any) -> None:
    gate = threading.Event()
    triton.before_infer = lambda attempt, items: gate.wait(20) and None
    try:
        with connect(triton.url, timeout=Timeout(request_s=0.5)) as client:
            with pytest.raises(RequestTimeout, match="within 0.5 s; raise Timeout.request_s"):
                client.encode_texts(["a"])
        assert len(triton.requests) == 1
    finally:
        gate.set()


def test_a_full_queue_is_waited_for_with_fewer_requests(triton: Any, fake: Any) -> None:
    def before(attempt: int, items: list[bytes]) -> None:
        if triton.under_way > 1:
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        time.sleep(0.002)

    triton.before_infer = before
    with connect(triton.url) as client:
        found = client.encode_texts(ITEMS, normalize=False, batch_size=4)
    np.testing.assert_array_equal(found, expected(fake, ITEMS))
    assert len(triton.requests) < 130


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Exceeds maximum queue size", "its queue is full"),
        ("no room at present: there is no memory", "refuses requests, no room at present: there is no memory; lower"),
    ],
)
def test_a_queue_that_stays_full(triton: Any, fake: Any, said: str, told: str) -> None:
    def before(attempt: int, items: list[bytes]) -> None:
        raise fake.Fault(grpc.StatusCode.UNAVAILABLE, said)

    triton.before_infer = before
    with connect(triton.url, retry=Retry(attempts=3, first_delay_s=0.01)) as client:
        with pytest.raises(ServerBusy, match=told):
            client.encode_texts(["a"])
    assert len(triton.requests) == 3


def test_what_may_not_be_sent_again_is_sent_once(triton: Any, fake: Any) -> None:
    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN):
        triton.forget()

        def before(attempt: int, items: list[bytes], code: grpc.StatusCode = code) -> None:
            raise fake.Fault(code, "broken")

        triton.before_infer = before
        with connect(triton.url) as client, pytest.raises(ServerError, match=f"{code.name}: broken"):
            client.encode_texts(["a"])
        assert len(triton.requests) == 1


def test_a_server_that_stays_away(triton: Any) -> None:
    with connect(triton.url, retry=Retry(attempts=1000, deadline_s=0.5, max_delay_s=0.1)) as client:
        blocks = []
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match="lost the connection"):
            for block in client.iter_texts(ITEMS, batch_size=4):
                blocks.append(block)
                if len(blocks) == 3:
                    triton.stop()
        assert time.monotonic() - started < 5
    # What was answered before has come out, in order.
    assert [block.start for block in blocks] == list(range(0, 4 * len(blocks), 4))
    with connect(triton.url, retry=Retry(connect_attempts=2)) as client:
        with pytest.raises(ServerUnreachable, match="no Triton server answers"):
            client.encode_texts(["a"])


def _replace(server: Any, fake: Any, **changes: Any) -> None:
    server.models = {model.name: model for model in fake.both("vit-b-16", **changes)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha": "b" * 64}, "checkpoint_sha256 aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        ({"version": "2"}, "version 1 -> 2"),
        # What a server that polls says of the version before, once a new one was published to it.
        ({"version": "2", "unloaded": ("1",)}, "version 1 -> 2"),
        ({"parameters": {"precision": "fp16"}}, "precision fp32 -> fp16"),
    ],
)
@pytest.mark.parametrize("restarted", [True, False])
def test_another_model_in_its_place_ends_the_run(
    triton: Any, fake: Any, change: dict[str, Any], told: str, restarted: bool
) -> None:
    """With `restarted` the requests under way are lost; without, a request is refused at most."""
    # All but the first are under way until the model is replaced, however long that takes on a busy machine.
    under_way, replaced = threading.Event(), threading.Event()

    def hold(attempt: int, items: list[bytes]) -> None:
        if items[0] != b"text 0":
            under_way.set()
            replaced.wait(30)

    triton.before_infer = hold
    with connect(triton.url) as client:
        stream = client.iter_texts(ITEMS, batch_size=4)
        next(stream)
        assert under_way.wait(30)
        sent = len(triton.requests)
        if restarted:
            triton.stop()
        _replace(triton, fake, **change)
        if restarted:
            triton.start()
        replaced.set()
        with pytest.raises(ModelChanged, match=told) as caught:
            list(stream)
        if restarted:
            # gRPC may have held back what was sent as it redialled, but nothing was sent anew.
            assert len(triton.requests) <= sent + client.limits.in_flight
            assert len(triton.requests) < len(ITEMS) // 4
    assert caught.value.before != caught.value.after
    assert caught.value.model == "vit-b-16-text"


def test_another_model_behind_an_idle_client_is_noticed(triton: Any, fake: Any) -> None:
    with connect(triton.url) as client:
        client.encode_texts(["a"])
        client.require_unchanged()
        triton.stop()
        _replace(triton, fake, sha="b" * 64)
        triton.start()
        with pytest.raises(ModelChanged):
            client.encode_texts(["a"] * 100)
        with pytest.raises(ModelChanged):
            client.require_unchanged()


def test_more_rows_a_request_are_no_other_model(triton: Any, fake: Any) -> None:
    with connect(triton.url) as client:
        client.encode_texts(["a"])
        _replace(triton, fake, max_batch_size=64)
        assert client.encode_texts(["a"] * 100).shape == (100, 16)
        client.require_unchanged()


def test_a_single_request_does_not_ask_again_at_once(triton: Any) -> None:
    asked = []
    triton.before_config = lambda: asked.append(1)
    with connect(triton.url) as client:
        client.encode_texts(["a"])
        asked.clear()
        for _ in range(20):
            client.encode_texts(["a"])
    assert len(asked) <= 2


def test_a_long_run_asks_now_and_then(triton: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that is away it wants no answer then; one with another model ends it long before its end."""
    monkeypatch.setattr("cnclip_client._flow.vouching._EVERY_S", 0.0)
    away = [fake.Fault(grpc.StatusCode.UNAVAILABLE, "away")]

    def before_config() -> None:
        if triton.requests and away:
            raise away.pop()

    triton.before_config = before_config
    with connect(triton.url) as client:
        stream = client.iter_texts(map(str, itertools.count()), batch_size=4)
        next(stream)
        triton.models["vit-b-16-text"].parameters["checkpoint_sha256"] = "b" * 64
        with pytest.raises(ModelChanged):
            for _ in itertools.islice(stream, 1000):
                pass
    assert not away


def test_the_last_answer_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def verify() -> None:
        asked.append(1)
        raise ServerUnreachable("away", url="localhost:1")

    with pytest.raises(ServerUnreachable):
        vouch(verify, Retry(attempts=3, first_delay_s=0.001))
    assert len(asked) == 3
    with pytest.raises(ServerUnreachable):
        vouch(verify, Retry(attempts=1000, first_delay_s=0.001, max_delay_s=0.001, deadline_s=0.01))
    assert len(asked) < 500
    assert not caplog.messages
    monkeypatch.setattr("cnclip_client._connection.endpoints._QUIET_S", 0.0)
    with pytest.raises(ServerUnreachable):
        vouch(verify, Retry(attempts=5, first_delay_s=0.001))
    assert caplog.messages == ["away; waiting for it, for 30 s at most"]


def test_a_reload_is_waited_for(triton: Any, fake: Any) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.005)
    model = triton.models["vit-b-16-text"]
    with connect(triton.url) as client:
        stream = client.iter_texts(ITEMS, normalize=False, batch_size=4)
        blocks = [next(stream)]
        model.state = "UNAVAILABLE"
        threading.Timer(0.5, setattr, (model, "state", "READY")).start()
        blocks += stream
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), expected(fake, ITEMS))


@pytest.mark.parametrize(("state", "error"), [("UNAVAILABLE", ModelNotReady), (None, ModelNotFound)])
def test_a_model_that_does_not_come_back(triton: Any, state: str | None, error: type[CnclipError]) -> None:
    with connect(triton.url, retry=Retry(attempts=3, first_delay_s=0.01)) as client:
        stream = client.iter_texts(ITEMS, batch_size=4)
        next(stream)
        if state:
            triton.models["vit-b-16-text"].state = state
        else:
            del triton.models["vit-b-16-text"]
        with pytest.raises(error):
            list(stream)


@pytest.mark.parametrize("where", ["waiting for an answer", "waiting to try again"])
def test_closing_from_another_thread_ends_a_call(triton: Any, fake: Any, where: str) -> None:
    gate = threading.Event()

    def before(attempt: int, items: list[bytes]) -> None:
        if where == "waiting for an answer":
            gate.wait(20)
        raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "not now")

    triton.before_infer = before
    client = connect(triton.url)
    threading.Timer(0.5, client.close).start()
    started = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match="the client is closed"):
            client.encode_texts(["a"])
        assert time.monotonic() - started < 5
    finally:
        gate.set()


def test_a_stream_that_is_left_cancels_what_is_under_way(triton: Any) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.01)
    with connect(triton.url, limits=Limits(in_flight=4)) as client:
        stream = client.iter_texts(ITEMS, batch_size=1)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        sent = len(triton.requests)
        time.sleep(0.1)
        assert len(triton.requests) <= sent + 4
        assert client.encode_texts(["b"]).shape == (1, 16)


@pytest.mark.parametrize("patience", [1, 5])
def test_a_config_call_that_fails_once(triton: Any, fake: Any, patience: int) -> None:
    left = [1]

    def before() -> None:
        if left[0]:
            left[0] -= 1
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "starting")

    triton.before_config = before
    use: Callable[[Client], Any] = lambda client: client.encode_texts(["a"])  # noqa: E731
    with connect(triton.url, retry=Retry(attempts=patience, connect_attempts=patience, first_delay_s=0.01)) as client:
        if patience == 1:
            with pytest.raises(ServerUnreachable):
                use(client)
        else:
            assert use(client).shape == (1, 16)


def test_a_model_process_that_died_is_waited_for(triton: Any, fake: Any) -> None:
    """Triton calls it INTERNAL; cnclip-serve starts the server again."""

    def fail_twice(attempt: int, items: list[bytes]) -> None:
        if attempt in (2, 3):
            raise fake.Fault(grpc.StatusCode.INTERNAL, "in ensemble 'm', Stub process 'm-tokenize_0_0' is not healthy.")

    triton.before_infer = fail_twice
    with connect(triton.url) as client:
        np.testing.assert_allclose(client.encode_texts(ITEMS, normalize=False), expected(fake, ITEMS), rtol=1e-6)
    assert len(triton.requests) > len(ITEMS) // 32 + 2
