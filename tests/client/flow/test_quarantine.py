"""Items that kill the server that gets them: found, blamed, and nothing else lost; and no innocent one blamed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from cnclip_client import BadInput, Client, Limits, Retry, ServerError, ServerUnreachable
from cnclip_client._connection.endpoint import Endpoint
from cnclip_client._flow.batches import Batch
from cnclip_client._flow.pipeline import Pipeline
from cnclip_client._flow.quarantine import Quarantine
from cnclip_token_ids import VOCABULARY, TokenIds

PATIENT = Retry(attempts=1_000_000, first_delay_s=0.05, max_delay_s=0.1, deadline_s=20)
ITEMS = [f"text {number}" for number in range(200)]
POISON = "poison"


class Mortal:
    """A server that dies, with all its connections, of some items, and is started again after a while.

    Attributes:
        away_s: That while, in seconds; None is for ever.
        deaths: What was under way at each death.
        fatal: Tells which items it dies of.
    """

    def __init__(self, server: Any, fault: Callable[..., Exception], away_s: float | None) -> None:
        self.server = server
        self.away_s = away_s
        self.deaths: list[list[bytes]] = []
        self.fatal: Callable[[bytes], bool] = lambda item: item == POISON.encode()
        self._fault = fault
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._port = 0
        self._birth: threading.Timer | None = None
        self._born()
        server.before_infer = self._before

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _born(self) -> None:
        self._listener = self._bound()
        self._port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def _bound(self) -> socket.socket:
        for _ in range(100):  # another process's connection may have the port for a while
            with contextlib.suppress(OSError):
                return socket.create_server(("127.0.0.1", self._port))
            time.sleep(0.1)
        return socket.create_server(("127.0.0.1", self._port))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.server.port))
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _before(self, attempt: int, items: list[bytes]) -> None:
        time.sleep(0.002)
        if any(map(self.fatal, items)):
            with self._lock:
                self.deaths.append(items)
                self.die()
            raise self._fault(grpc.StatusCode.ABORTED, "nobody hears this")

    def die(self) -> None:
        self.close()
        if self.away_s == 0:
            self._born()
        elif self.away_s is not None:
            if self._birth is not None:
                self._birth.cancel()  # two requests may kill it at the same moment
            self._birth = threading.Timer(self.away_s, self._born)
            self._birth.start()

    def end(self) -> None:
        """Dies for good, also where it is just dying or being born."""
        with self._lock:
            self.away_s = None
            if self._birth is not None:
                self._birth.cancel()
                self._birth.join()
            self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def mortals(serve: Callable[..., Any], fake: Any) -> Iterator[Callable[..., Mortal]]:
    started: list[Mortal] = []

    def start(away_s: float | None = 0.3, *models: Any) -> Mortal:
        started.append(Mortal(serve(*(models or fake.both("vit-b-16"))), fake.Fault, away_s))
        return started[-1]

    yield start
    for one in started:
        one.end()


def connect(*servers: Mortal, **options: Any) -> Client:
    return Client([one.url for one in servers], model="vit-b-16", **{"retry": PATIENT, **options})


def require_right(block: Any, fake: Any, items: list[str], *, blamed: list[int]) -> None:
    assert list(block.failures) == blamed
    good = [item for row, item in enumerate(items) if row not in blamed]
    np.testing.assert_array_equal(block.features, np.stack([fake.features_of(item.encode()) for item in good]))


def test_a_poisonous_item_fails_and_nothing_else_is_lost(mortals: Callable[..., Mortal], fake: Any) -> None:
    server = mortals()
    items = [*ITEMS]
    items[101] = POISON
    with connect(server) as client:
        blocks = list(client.iter_texts(items, normalize=False, batch_size=8))
        assert [block.start for block in blocks] == list(range(0, 200, 8))
        found = client.encode_texts(["after"], normalize=False, errors="collect")
        require_right(found, fake, ["after"], blamed=[])
    failures = {row: reason for block in blocks for row, reason in block.failures.items()}
    assert list(failures) == [101]
    assert failures[101].startswith("kills the server, which died of it again and again")
    good = [item for item in items if item != POISON]
    features = np.concatenate([block.features for block in blocks])
    np.testing.assert_array_equal(features, np.stack([fake.features_of(item.encode()) for item in good]))
    # Among all, with the rest of its request, and twice alone.
    assert [len(items) for items in server.deaths] == [8, 8, 1, 1]


def test_whatever_is_tried_is_alone_at_the_server(mortals: Callable[..., Mortal], fake: Any) -> None:
    server = mortals()
    server.server.before_infer = None
    alone = []

    def before(attempt: int, items: list[bytes]) -> None:
        if server.deaths and POISON.encode() in items:
            alone.append(server.server.under_way)
        server._before(attempt, items)

    server.server.before_infer = before
    with connect(server) as client:
        calls = [
            threading.Thread(target=client.encode_texts, args=(ITEMS,), kwargs={"batch_size": 2}) for _ in range(3)
        ]
        for call in calls:
            call.start()
        found = client.encode_texts([*ITEMS[:7], POISON], normalize=False, errors="collect", batch_size=4)
        for call in calls:
            call.join()
    require_right(found, fake, [*ITEMS[:7], POISON], blamed=[7])
    assert alone == [1] * len(server.deaths[1:])


@pytest.mark.parametrize("count", [2, 3])
def test_it_takes_no_other_server_down(mortals: Callable[..., Mortal], fake: Any, count: int) -> None:
    servers = [mortals() for _ in range(count)]
    items = [*ITEMS, POISON, *ITEMS]
    with connect(*servers) as client:
        found = client.encode_texts(items, normalize=False, batch_size=4, errors="collect")
    require_right(found, fake, items, blamed=[200])
    assert sorted(len(server.deaths) for server in servers) == [0] * (count - 1) + [4]


def test_one_that_is_gone_for_good_keeps_nobody_waiting_for_long(mortals: Callable[..., Mortal], fake: Any) -> None:
    gone, other = mortals(away_s=None), mortals()
    gone.fatal = lambda item: len(gone.server.requests) > 3
    other.fatal = lambda item: False
    started = time.monotonic()
    with connect(gone, other) as client:
        found = client.encode_texts(ITEMS * 2, normalize=False, batch_size=4, errors="collect")
        assert time.monotonic() - started < 4
    require_right(found, fake, ITEMS * 2, blamed=[])
    with connect(gone, retry=Retry(attempts=3, first_delay_s=0.01)) as client:
        with pytest.raises(ServerUnreachable):
            client.encode_texts(["a"])


def test_it_kills_two_at_most_where_none_is_started_again(mortals: Callable[..., Mortal]) -> None:
    servers = [mortals(away_s=None) for _ in range(3)]
    retry = Retry(attempts=1_000_000, first_delay_s=0.05, max_delay_s=0.1, deadline_s=2)
    with connect(*servers, retry=retry) as client, pytest.raises(ServerUnreachable, match="lost the connection"):
        client.encode_texts([*ITEMS[:7], POISON], batch_size=8)
    assert sum(len(server.deaths) for server in servers) == 2


def test_what_waits_for_the_server_that_had_it_says_so(
    mortals: Callable[..., Mortal], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnclip_client._connection.endpoints._QUIET_S", 0.1)
    server = mortals(away_s=0.8)
    server.fatal = lambda item: not server.deaths
    with connect(server) as client:
        client.encode_texts(["a"])
    waiting, again = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert waiting.endswith("; waiting for it, for 20 s at most")
    assert again == f"{server.url} answers again"


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_single_item(mortals: Callable[..., Mortal], kind: str) -> None:
    server = mortals()
    with connect(server) as client, pytest.raises(BadInput, match=r"\[0\] kills the server"):
        client.encode_texts([POISON]) if kind == "text" else client.encode_images([POISON.encode()])
    assert len(server.deaths) == 3


def test_several_of_them(mortals: Callable[..., Mortal], fake: Any) -> None:
    server = mortals(away_s=0.15)
    items = [POISON if row in (3, 4, 40) else f"text {row}" for row in range(60)]
    with connect(server) as client:
        found = client.encode_texts(items, normalize=False, batch_size=8, errors="collect")
    require_right(found, fake, items, blamed=[3, 4, 40])


def test_a_server_that_dies_of_everything_blames_nothing(mortals: Callable[..., Mortal]) -> None:
    server = mortals(away_s=0.05)
    server.fatal = lambda item: True
    retry = Retry(attempts=1_000_000, first_delay_s=0.02, max_delay_s=0.1, deadline_s=1)
    with connect(server, retry=retry) as client:
        with pytest.raises(ServerUnreachable, match="lost the connection"):
            client.encode_texts(["a"])
    assert len(server.deaths) > 2


def test_attempts_are_counted(mortals: Callable[..., Mortal]) -> None:
    server = mortals()
    with connect(server, retry=Retry(attempts=1)) as client, pytest.raises(ServerUnreachable):
        client.encode_texts([POISON])
    assert len(server.deaths) == 1


def test_an_item_is_not_blamed_for_what_cuts_off_who_is_silent(
    mortals: Callable[..., Mortal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a proxy that passes bytes on does while the server is busy: each trial would last as long."""
    monkeypatch.setattr("cnclip_client._flow.quarantine._SILENCE_S", 0.0)
    server = mortals(0)
    with connect(server) as client:
        with pytest.raises(ServerUnreachable, match="broke again and again .* for 0 s; .*timeout server"):
            client.encode_texts(["a", POISON], batch_size=1)


def test_an_item_is_blamed_for_what_a_proxy_says_it_did(
    triton: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not cut anything off, however long that took: its own connection to the server was lost."""
    monkeypatch.setattr("cnclip_client._flow.quarantine._SILENCE_S", 0.0)

    def before(attempt: int, items: list[bytes]) -> None:
        if POISON.encode() in items:
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 502")

    triton.before_infer = before
    with Client(triton.url, model="vit-b-16", retry=PATIENT) as client:
        found = client.encode_texts(["a", POISON], normalize=False, batch_size=1, errors="collect")
    require_right(found, fake, ["a", POISON], blamed=[1])


@pytest.mark.parametrize(("breaks", "blamed"), [(4, []), (100, [0])])
def test_a_connection_that_breaks_is_no_death(
    mortals: Callable[..., Mortal], fake: Any, breaks: int, blamed: list[int]
) -> None:
    """The server is back at once: it takes more than two to blame the item."""
    server = mortals(away_s=0)
    server.fatal = lambda item: item == POISON.encode() and len(server.deaths) < breaks
    with connect(server) as client:
        found = client.encode_texts([POISON, "a"], normalize=False, batch_size=1, errors="collect")
    require_right(found, fake, [POISON, "a"], blamed=blamed)
    assert len(server.deaths) == min(breaks, 6)


def test_a_models_process_that_died_and_is_missed_only_later(triton: Any, fake: Any) -> None:
    """Triton lives on and says so of every request, until somebody starts it again."""
    healthy, deaths = threading.Event(), []
    healthy.set()

    def before(attempt: int, items: list[bytes]) -> None:
        if POISON.encode() in items and healthy.is_set():
            deaths.append(len(items))
            healthy.clear()
            threading.Timer(0.3, healthy.set).start()
        if not healthy.is_set():
            raise fake.Fault(grpc.StatusCode.INTERNAL, "Stub process 'm-tokenize_0_0' is not healthy.")

    triton.before_infer = before
    items = [*ITEMS[:50], POISON, *ITEMS[50:]]
    with Client(triton.url, model="vit-b-16", retry=PATIENT) as client:
        found = client.encode_texts(items, normalize=False, batch_size=8, errors="collect")
    require_right(found, fake, items, blamed=[50])
    assert deaths == [8, 8, 1, 1]


def test_a_bad_row_beside_it_is_told_as_ever(mortals: Callable[..., Mortal]) -> None:
    server = mortals()
    with connect(server) as client:
        found = client.encode_texts(["a", POISON, "BAD:torn"], errors="collect")
    assert found.failures[2] == "torn"
    assert "kills" in found.failures[1]
    assert found.indices.tolist() == [0]


def test_what_fails_otherwise_in_a_trial_ends_the_run(mortals: Callable[..., Mortal], fake: Any) -> None:
    server = mortals()

    def before(attempt: int, items: list[bytes]) -> None:
        if server.deaths and POISON.encode() in items:
            raise fake.Fault(grpc.StatusCode.INTERNAL, "CUDA out of memory")
        server._before(attempt, items)

    server.server.before_infer = before
    with connect(server) as client, pytest.raises(ServerError, match="CUDA out of memory"):
        client.encode_texts([POISON])


def test_innocents_of_other_clients_are_not_blamed(mortals: Callable[..., Mortal], fake: Any) -> None:
    """All of them lose the same server at the same moments, each with one item alone."""
    server = mortals(away_s=0.1)
    retry = Retry(attempts=1_000_000, first_delay_s=0.02, max_delay_s=0.5, deadline_s=20)
    outcomes: dict[int, Any] = {}
    connected = threading.Barrier(6)

    def use(number: int) -> None:
        with connect(server, retry=retry) as client:
            client.info_of("text")
            connected.wait()
            items = [POISON] if number == 0 else [f"text {number}"]
            for _ in range(1 if number == 0 else 20):
                outcomes[number] = client.encode_texts(items, normalize=False, errors="collect")
                if number and outcomes[number].failures:
                    return

    calls = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert list(outcomes.pop(0).failures) == [0]
    for number, found in outcomes.items():
        require_right(found, fake, [f"text {number}"], blamed=[])


def test_a_run_that_is_left_keeps_no_server(mortals: Callable[..., Mortal], fake: Any) -> None:
    """Its caller may never come back for the next block, and need not have closed it."""
    server = mortals()
    with connect(server, limits=Limits(in_flight=4)) as client:
        stream = client.iter_texts([*ITEMS[:4], POISON, *ITEMS], batch_size=1)
        next(stream)
        until = time.monotonic() + 5
        while not server.deaths:
            next(stream)
            assert time.monotonic() < until
        started = time.monotonic()
        found = client.encode_texts(["a"], normalize=False, errors="collect")
        assert time.monotonic() - started < 5
    require_right(found, fake, ["a"], blamed=[])


def test_ids_that_kill_an_encoder_are_found_and_nothing_else_is_lost(mortals: Callable[..., Mortal], fake: Any) -> None:
    """What is harmless is made of ids, too: the encoder takes no texts."""
    server = mortals(0.1, fake.text_encoder("vit-b-16"))
    token_ids = TokenIds(VOCABULARY, 52, (40, 52))
    deadly = np.array(token_ids.encode(POISON), np.int32).tobytes()
    server.fatal = lambda item: item.startswith(deadly)
    with connect(server, prepare="client") as client:
        block = client.encode_texts([*ITEMS[:20], POISON, *ITEMS[20:40]], normalize=False, errors="collect")
    assert list(block.failures) == [20]
    assert "kills the server" in block.failures[20]
    expected = [fake.features_of(token_ids.pad([token_ids.encode(text)]).tobytes()) for text in ITEMS[:40]]
    np.testing.assert_array_equal(block.features, expected)


def test_a_run_that_waits_for_anothers_suspects_takes_no_processor(
    triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    look = Pipeline._take_answers

    def counted(self: Pipeline, *, wait: bool) -> None:
        nonlocal looked
        looked += 1
        look(self, wait=wait)

    with Client(triton.url, model="vit-b-16") as client:
        client.encode_texts(["a"])
        (server,) = client._endpoints.inside()
        monkeypatch.setattr(Pipeline, "_take_answers", counted)
        until = time.monotonic() + 0.3
        server.kept_until = until
        client.encode_texts(["b"])
        assert time.monotonic() >= until
    assert looked < 100


class Servers:
    """Of `Endpoints` what a quarantine asks: who answers."""

    retry = Retry(attempts=1000, first_delay_s=0.1, max_delay_s=0.1, deadline_s=20)

    def __init__(self) -> None:
        self.there: list[Endpoint] = []

    def inside(self) -> list[Endpoint]:
        return self.there

    def take_alone(self, places: Collection[Endpoint]) -> Endpoint | None:
        return next(iter(places), None)

    def ended(self, endpoint: Endpoint, *, answered: bool) -> None: ...

    def keep(self, endpoint: Endpoint) -> None: ...

    def let_go(self, endpoint: Endpoint) -> None: ...

    def waits(self, problem: Exception, since: float) -> None: ...


def test_patience_begins_anew_after_each_trial_and_who_killed_alone_goes_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("cnclip_client._flow.quarantine.time", SimpleNamespace(monotonic=lambda: now))
    one, other = (Endpoint(SimpleNamespace(url=url), proofs=8) for url in ("a:1", "b:1"))  # type: ignore[arg-type]
    servers, batch, problem = Servers(), Batch(0, 1, [0], [b"x"]), ServerUnreachable("away", url="a:1")
    quarantine = Quarantine(servers, lambda: b"", 2, grace_s=5.0)  # type: ignore[arg-type]
    quarantine.add(batch, one, problem, certain=True, cut_off=True)
    assert quarantine.next() is None
    now, servers.there = 10.0, [one]
    assert quarantine.next() is None, "for a moment of its own"
    now = 11.0
    assert quarantine.next() == (batch, one)
    assert not quarantine.ended(batch)
    quarantine.add(batch, one, problem, certain=True, cut_off=True)
    servers.there = [other]
    for now, outcome in ((30.0, None), (31.0, None), (51.0, problem)):  # noqa: B007 - the clock has it
        assert quarantine.next() is None
        assert batch.outcome is outcome
