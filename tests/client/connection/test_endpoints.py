"""Several servers of one model: the work is shared, one that fails is left out and taken back, models never mix."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from cnclip_client import (
    Client,
    Limits,
    ModelChanged,
    RequestTimeout,
    Retry,
    ServerError,
    ServerUnreachable,
    Timeout,
    served_models,
)
from cnclip_client._connection.endpoint import urls_of

ITEMS = [f"text {number}" for number in range(600)]
QUICK = Retry(attempts=1000, first_delay_s=0.02, max_delay_s=0.1, deadline_s=20)


@pytest.fixture
def servers(serve: Callable[..., Any], fake: Any) -> list[Any]:
    started = [serve(*fake.both("vit-b-16")) for _ in range(3)]
    for server in started:
        server.before_infer = lambda attempt, items: time.sleep(0.004)
    return started


def connect(servers: list[Any], **options: Any) -> Client:
    return Client([server.url for server in servers], model="vit-b-16", **{"retry": QUICK, **options})


def expected(fake: Any, items: list[str]) -> np.ndarray:
    return np.stack([fake.features_of(item.encode()) for item in items])


def test_addresses_come_in_every_form() -> None:
    assert urls_of("a:1") == ("a:1",)
    assert urls_of("a:1, b:2,") == ("a:1", "b:2")
    assert urls_of(["a:1", "b:2,c:3", "a:1"]) == ("a:1", "b:2", "c:3")
    assert urls_of("dns:///triton.default:8001") == ("dns:///triton.default:8001",)
    for given in ([], "", [","], " , ", ["", " "]):
        with pytest.raises(
            ValueError, match=r"^no server is named: '[ ,]*' holds no address .*CNCLIP_URL.*a:8001,b:8001$"
        ):
            urls_of(given)
    with pytest.raises(ValueError, match="'b' has no port"):
        Client("a:1,b", model="m")
    assert repr(Client(["a:1", "b:2"], model="m")) == "Client('a:1,b:2', model='m')"


def test_the_least_busy_gets_the_next_request(servers: list[Any], fake: Any) -> None:
    """The third is so slow that it is so on a busy machine, too, and takes the smaller share of it."""
    servers[2].before_infer = lambda attempt, items: time.sleep(0.1)
    with connect(servers) as client:
        found = client.encode_texts(ITEMS, normalize=False, batch_size=2)
    np.testing.assert_array_equal(found, expected(fake, ITEMS))
    first, second, slow = (len(server.requests) for server in servers)
    assert first + second + slow == len(ITEMS) // 2
    assert abs(first - second) < 0.3 * (first + second)
    assert 0 < slow < 0.5 * min(first, second)


def test_a_slow_one_does_not_hold_the_others_up(servers: list[Any], fake: Any) -> None:
    """The blocks come in order, so that what it has to answer is waited for; the others go on meanwhile."""
    fast, slow = servers[:2]
    ahead, waited = threading.Event(), []
    fast.before_infer = lambda attempt, items: ahead.set() if attempt > 30 else None
    slow.before_infer = lambda attempt, items: waited.append(ahead.wait(2))
    with connect([fast, slow], limits=Limits(in_flight=8)) as client:
        found = client.encode_texts(ITEMS[:100], normalize=False, batch_size=2)
    assert waited
    assert all(waited)
    np.testing.assert_array_equal(found, expected(fake, ITEMS[:100]))


def test_one_that_dies_costs_nothing_and_is_taken_back(
    servers: list[Any], fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    source = (f"text {number}" for number in range(100_000))
    with connect(servers) as client, caplog.at_level(logging.INFO, "cnclip_client"):
        stream = client.iter_texts(source, normalize=False, batch_size=4)
        blocks = [next(stream) for _ in range(20)]
        servers[1].stop(to_the_last=True)
        before = len(servers[1].requests)
        blocks += [next(stream) for _ in range(60)]
        assert len(servers[1].requests) == before
        servers[1].start()
        until = time.monotonic() + 10
        while len(servers[1].requests) < before + 20:
            blocks.append(next(stream))
            assert time.monotonic() < until, "it was not taken back"
        stream.close()  # type: ignore[attr-defined]
    done = [f"text {number}" for number in range(blocks[-1].stop)]
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), expected(fake, done))
    left_out = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().split(" is ")[0] for record in left_out] == [servers[1].url]


def test_all_but_one_die(servers: list[Any], fake: Any) -> None:
    with connect(servers) as client:
        stream = client.iter_texts(ITEMS, normalize=False, batch_size=4)
        blocks = [next(stream)]
        servers[0].stop()
        servers[2].stop()
        blocks += stream
        client.require_unchanged()
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), expected(fake, ITEMS))


@pytest.mark.parametrize("number", [1, 3])
def test_all_of_them_die_and_one_comes_back(
    servers: list[Any], fake: Any, number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the run waits is told, once, and that it goes on: nothing else moves meanwhile."""
    monkeypatch.setattr("cnclip_client._connection.endpoints._QUIET_S", 0.2)
    servers = servers[:number]
    with connect(servers) as client:
        stream = client.iter_texts(ITEMS, normalize=False, batch_size=4)
        blocks = [next(stream)]
        for server in servers:
            server.stop()
        back = threading.Timer(0.7, servers[-1].start)
        back.start()
        blocks += stream
        back.join()
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), expected(fake, ITEMS))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    waiting, again = [line for line in told if " is left out for now" not in line]
    assert waiting.startswith("lost the connection to ")
    assert waiting.endswith("; waiting for it, for 20 s at most")
    assert again == f"{servers[-1].url} answers again"


def test_who_does_not_wait_is_told_of_no_waiting(
    servers: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a service, whose requests fail for a while, each at once."""
    monkeypatch.setattr("cnclip_client._connection.endpoints._QUIET_S", 0.0)
    with connect(servers[:1], retry=Retry(attempts=1, max_delay_s=0.01)) as client:
        client.encode_texts(ITEMS)
        servers[0].stop()
        for _ in range(3):
            with pytest.raises(ServerUnreachable):
                client.encode_texts(ITEMS)
    assert not [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_all_of_them_stay_away(servers: list[Any]) -> None:
    with connect(servers, retry=Retry(attempts=1000, deadline_s=0.5, max_delay_s=0.1)) as client:
        stream = client.iter_texts(ITEMS, batch_size=4)
        next(stream)
        for server in servers:
            server.stop()
        with pytest.raises(ServerUnreachable, match="lost the connection"):
            list(stream)


def test_one_that_was_never_there(servers: list[Any], fake: Any) -> None:
    servers[0].stop()
    with connect(servers) as client:
        np.testing.assert_array_equal(client.encode_texts(ITEMS, normalize=False), expected(fake, ITEMS))
    assert served_models([server.url for server in servers]) == ("vit-b-16",)
    for server in servers[1:]:
        server.stop()
    with connect(servers, retry=Retry(connect_attempts=2)) as client:
        with pytest.raises(ServerUnreachable, match=f"no Triton server answers at {servers[0].url}"):
            client.encode_texts(["a"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha": "b" * 64}, "checkpoint_sha256 aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        ({"version": "2"}, "version 1 -> 2"),
        ({"parameters": {"precision": "fp16"}}, "precision fp32 -> fp16"),
    ],
)
def test_one_with_another_model_is_refused_before_anything_is_sent(
    servers: list[Any], serve: Callable[..., Any], fake: Any, change: dict[str, Any], told: str
) -> None:
    other = serve(*fake.both("vit-b-16", **change))
    with connect([*servers, other]) as client:
        for _ in range(2):
            with pytest.raises(ModelChanged, match=f"{told}.*leave this one out") as caught:
                client.encode_texts(["a"])
    assert caught.value.url == other.url
    assert f"vit-b-16-text at {other.url} is not" in str(caught.value)
    assert not any(server.requests for server in [*servers, other])


@pytest.mark.parametrize("restarted", [True, False])
def test_one_that_comes_back_with_another_model_ends_the_run(servers: list[Any], fake: Any, restarted: bool) -> None:
    with connect(servers) as client:
        stream = client.iter_texts(ITEMS * 2, batch_size=4)
        next(stream)
        if restarted:
            servers[1].stop()
        servers[1].models = {model.name: model for model in fake.both("vit-b-16", sha="b" * 64)}
        if restarted:
            servers[1].start()
        with pytest.raises(ModelChanged) as caught:
            list(stream)
        assert caught.value.url == servers[1].url
        with pytest.raises(ModelChanged):
            client.require_unchanged()
            client.encode_texts(["a"])


def test_one_that_refuses_everything_at_once_does_not_draw_the_work(servers: list[Any], fake: Any) -> None:
    """It is never busy, and answers every question but the one that matters."""

    def refuse(attempt: int, items: list[bytes]) -> None:
        raise fake.Fault(grpc.StatusCode.INTERNAL, "Stub process 'm_0_0' is not healthy.")

    servers[0].before_infer = refuse
    with connect(servers, retry=Retry(attempts=3, first_delay_s=0.02, deadline_s=20)) as client:
        found = client.encode_texts(ITEMS, normalize=False, batch_size=4)
    np.testing.assert_array_equal(found, expected(fake, ITEMS))
    assert len(servers[0].requests) < 12


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.INTERNAL, "CUDA out of memory"),
        (grpc.StatusCode.UNKNOWN, "onnx runtime error 6"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room"),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you"),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference input"),
        (None, "an answer of another shape"),
    ],
)
def test_one_that_is_sick_leaves_it_to_the_others_and_is_taken_back(
    servers: list[Any], fake: Any, caplog: pytest.LogCaptureFixture, code: grpc.StatusCode | None, words: str
) -> None:
    ill = threading.Event()
    ill.set()

    def refuse(attempt: int, items: list[bytes]) -> None:
        time.sleep(0.004)
        if ill.is_set() and code is not None:
            raise fake.Fault(code, words)

    servers[0].before_infer = refuse
    source = (f"text {number}" for number in range(100_000))
    with connect(servers) as client:
        client.encode_texts(["text"])
        if code is None:
            servers[0].models["vit-b-16-text"].dimension = 8
        stream = client.iter_texts(source, normalize=False, batch_size=4)
        blocks = [next(stream) for _ in range(100)]
        refused = len(servers[0].requests)
        assert 0 < refused < 20
        ill.clear()
        servers[0].models["vit-b-16-text"].dimension = fake.dimension
        until = time.monotonic() + 10
        while len(servers[0].requests) < refused + 20:
            blocks.append(next(stream))
            assert time.monotonic() < until, "it was not taken back"
        stream.close()  # type: ignore[attr-defined]
    done = [f"text {number}" for number in range(blocks[-1].stop)]
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), expected(fake, done))
    assert f"{servers[0].url} is left out for now" in caplog.text


def test_what_all_of_them_fail_is_sent_to_each_once(servers: list[Any], fake: Any) -> None:
    def refuse(attempt: int, items: list[bytes]) -> None:
        raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

    for server in servers:
        server.before_infer = refuse
    with connect(servers) as client, pytest.raises(ServerError, match="INTERNAL: broken"):
        client.encode_texts(["a"])
    assert [len(server.requests) for server in servers] == [1, 1, 1]


def test_what_one_failed_waits_a_moment_for_another_that_is_away(servers: list[Any], fake: Any) -> None:
    def refuse(attempt: int, items: list[bytes]) -> None:
        raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

    first, second, _ = servers
    first.before_infer = refuse
    with connect([first, second]) as client:
        client.info_of("text")
        second.stop()
        with connect([first, second]) as hurried, pytest.raises(ServerError, match="INTERNAL: broken"):
            hurried.encode_texts(["a"])
        assert len(first.requests) == 1
        back = threading.Timer(0.3, second.start)
        back.start()
        np.testing.assert_array_equal(client.encode_texts(["a"], normalize=False), expected(fake, ["a"]))
        back.join()


def test_one_whose_queue_is_full_leaves_it_to_the_others(servers: list[Any], fake: Any) -> None:
    def refuse(attempt: int, items: list[bytes]) -> None:
        raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    servers[0].before_infer = refuse
    with connect(servers, retry=Retry(attempts=3, deadline_s=20)) as client:
        found = client.encode_texts(ITEMS, normalize=False, batch_size=4)
    np.testing.assert_array_equal(found, expected(fake, ITEMS))
    assert len(servers[0].requests) < 20


def test_what_is_late_at_one_goes_to_another(servers: list[Any], fake: Any) -> None:
    gate = threading.Event()
    servers[0].before_infer = lambda attempt, items: gate.wait(20) and None
    try:
        with connect(servers, timeout=Timeout(request_s=0.5)) as client:
            found = client.encode_texts(ITEMS, normalize=False, batch_size=4)
        np.testing.assert_array_equal(found, expected(fake, ITEMS))
        with connect(servers[:1], timeout=Timeout(request_s=0.3)) as client, pytest.raises(RequestTimeout):
            client.encode_texts(["a"])
    finally:
        gate.set()


def test_a_run_that_is_left_counts_as_no_load(servers: list[Any]) -> None:
    with connect(servers, limits=Limits(in_flight=12)) as client:
        stream = client.iter_texts(ITEMS, batch_size=1)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        until = time.monotonic() + 5
        while any(endpoint.under_way for endpoint in client._endpoints.inside()):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_name_is_resolved_and_its_addresses_shared_by_grpc_itself(triton: Any, fake: Any) -> None:
    with Client(f"dns:///localhost:{triton.port}", model="vit-b-16", retry=QUICK) as client:
        np.testing.assert_array_equal(client.encode_texts(ITEMS, normalize=False), expected(fake, ITEMS))
