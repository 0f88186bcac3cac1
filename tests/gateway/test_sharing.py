"""Small requests that wait at the same time share a call of the client, and nothing else."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from cnclip_gateway._sharing import MOST_SHARED

from tests.client.conftest import FakeTriton, Fault
from tests.gateway.conftest import Answer, Running

CALLS = 4


class Held:
    """Holds what a fake server is asked, until it is let go."""

    def __init__(self, triton: FakeTriton) -> None:
        self.go = threading.Event()
        self.arrived = threading.Semaphore(0)
        triton.before_infer = self.wait

    def wait(self, attempt: int, items: list[bytes]) -> None:
        self.arrived.release()
        assert self.go.wait(60)


@pytest.fixture
def held(triton: FakeTriton, run: Callable[..., Running]) -> Any:
    """A gateway all of whose calls are under way, and what lets them go."""
    gateway = run(triton.url, preprocess=False)
    assert gateway.embed("warm").status == 200
    triton.forget()
    holding = Held(triton)
    first = fill(gateway, holding)
    yield gateway, holding.go, first
    holding.go.set()
    for thread, _ in first:
        thread.join(60)


def fill(gateway: Running, holding: Held) -> list[Any]:
    """Has all calls be under way: one by one, or two of them might share one."""
    first = []
    for number in range(CALLS):
        first.append(asked(gateway, f"first {number}"))
        assert holding.arrived.acquire(timeout=30)
    return first


def asked(gateway: Running, items: Any) -> tuple[threading.Thread, list[Answer]]:
    """Asks beside the test; the answer is in the list once the thread has ended."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(gateway.embed(items)))
    thread.start()
    return thread, answers


def wait_until(gateway: Running, count: int) -> None:
    """Waits until so many requests are under way, and were read: what counts them is asked by one more."""
    deadline = time.monotonic() + 60
    while gateway.metric("cnclip_gateway_requests_under_way") < count + 1 and time.monotonic() < deadline:
        time.sleep(0.02)


def ended(one: tuple[threading.Thread, list[Answer]]) -> Answer:
    one[0].join(60)
    return one[1][0]


def test_those_that_wait_go_together_and_come_back_apart(held: Any, triton: FakeTriton) -> None:
    gateway, go, first = held
    others = [asked(gateway, [f"{number}", "same"]) for number in range(8)]
    wait_until(gateway, CALLS + 8)
    time.sleep(0.2)  # for the last one's body; were it late, it would only be in a call of its own
    go.set()
    for number, one in enumerate(others):
        answer = ended(one)
        assert answer.status == 200
        alone = gateway.embed([f"{number}", "same"]).json["data"]
        assert answer.json["data"] == alone
    assert all(ended(one).status == 200 for one in first)
    together = [items for items in triton.requests if b"same" in items][: -len(others)]
    assert sorted(item for items in together for item in items).count(b"same") == 8
    assert len(together) < 8


def test_who_sends_a_bad_item_is_the_only_one_who_hears_of_it(held: Any) -> None:
    gateway, go, _ = held
    sent = [["a", "b"], ["c", "BAD:too bad"], "d", ["BAD:worse", "e"]]
    others = [asked(gateway, items) for items in sent]
    wait_until(gateway, CALLS + len(sent))
    go.set()
    answers = [ended(one) for one in others]
    assert [one.status for one in answers] == [200, 400, 200, 400]
    assert "input[1] too bad" in answers[1].error["message"]
    assert "input[0] worse" in answers[3].error["message"]


def test_a_call_that_fails_fails_for_those_in_it(gateway: Running, triton: FakeTriton) -> None:
    def fail(attempt: int, items: list[bytes]) -> None:
        raise Fault(grpc.StatusCode.INTERNAL, "out of memory")

    assert gateway.embed("warm").status == 200
    triton.before_infer = fail
    others = [asked(gateway, f"{number}") for number in range(12)]
    assert {ended(one).status for one in others} == {502}
    triton.forget()
    assert gateway.embed("x").status == 200


def test_texts_do_not_wait_for_pictures(held: Any, triton: FakeTriton) -> None:
    gateway, go, first = held
    triton.before_infer = lambda attempt, items: None
    answer = gateway.embed({"image": base64.b64encode(b"picture").decode()})
    assert answer.status == 200
    assert not any(answers for _, answers in first)
    go.set()


def test_large_and_mixed_requests_have_calls_of_their_own(held: Any, triton: FakeTriton) -> None:
    gateway, go, first = held
    triton.before_infer = lambda attempt, items: None
    assert gateway.embed([f"{number}" for number in range(MOST_SHARED + 1)]).status == 200
    assert gateway.embed(["text", {"image": base64.b64encode(b"picture").decode()}]).status == 200
    assert not any(answers for _, answers in first)
    go.set()


def test_who_is_not_waited_for_any_more_is_left_out(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, preprocess=False, time_limit_s=1.0)
    assert gateway.embed("warm").status == 200
    triton.forget()
    holding = Held(triton)
    first = fill(gateway, holding)
    late = gateway.embed("late")
    assert (late.status, late.error["code"]) == (504, "timeout")
    holding.go.set()
    for one in first:
        ended(one)
    assert gateway.embed("after").status == 200
    assert [b"late"] not in triton.requests


def leave(gateway: Running, items: Any, *, beside: int, holding: Held | None = None) -> None:
    """Asks while so many requests are under way, and goes away once its own is, too; returns when that no longer is.

    With `holding` it goes away once the server has some of it.
    """
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request("POST", "/v1/embeddings", json.dumps({"model": "vit-b-16", "input": items}))
    wait_until(gateway, beside + 1)
    assert holding is None or holding.arrived.acquire(timeout=30)
    connection.close()
    deadline = time.monotonic() + 30
    while gateway.metric("cnclip_gateway_requests_under_way") > beside + 1 and time.monotonic() < deadline:
        time.sleep(0.02)


# Behind such a request uvicorn stops reading.
LARGE = "left" * 100_000


def test_who_has_left_is_left_out(held: Any, triton: FakeTriton) -> None:
    gateway, go, first = held
    for items in ("left", ["left"] * MOST_SHARED, LARGE):
        leave(gateway, items, beside=CALLS)
    assert gateway.metric('cnclip_gateway_requests_total{route="/v1/embeddings",status="499"}') == 3
    go.set()
    assert all(ended(one).status == 200 for one in first)
    assert gateway.embed("after").status == 200
    assert not any(b"left" in items for items in triton.requests)
    assert gateway.metric("cnclip_gateway_held_bytes") == 0


def test_so_is_a_large_request_that_waits_for_a_worker(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, preprocess=False, concurrency=1)
    assert gateway.embed("warm").status == 200
    triton.forget()
    holding = Held(triton)
    large = [f"{number}" for number in range(MOST_SHARED + 1)]
    first = asked(gateway, large)
    assert holding.arrived.acquire(timeout=30)
    leave(gateway, ["left", *large], beside=1)
    holding.go.set()
    assert ended(first).status == 200
    assert gateway.embed("after").status == 200
    assert not any(b"left" in items for items in triton.requests)


def test_no_more_of_a_large_request_is_sent_than_was_under_way(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, preprocess=False, concurrency=1)
    assert gateway.embed("warm").status == 200
    triton.forget()
    holding = Held(triton)
    leave(gateway, [f"{number}" for number in range(2000)], beside=0, holding=holding)
    holding.go.set()
    # By the one worker that there is, once the other is done.
    assert gateway.embed([f"after {number}" for number in range(MOST_SHARED + 1)]).status == 200
    assert sum(len(items) for items in triton.requests) < 2000 / 2


@pytest.mark.parametrize("count", [1, MOST_SHARED + 1])
def test_nothing_is_held_of_who_has_left(run: Callable[..., Running], triton: FakeTriton, count: int) -> None:
    """What was not counted any more lay there until somebody came to it: a gateway of 64 MiB held 230."""
    gateway = run(triton.url, preprocess=False, concurrency=1)
    assert gateway.embed("warm").status == 200
    holding = Held(triton)
    busy = [asked(gateway, [f"{number}" for number in range(MOST_SHARED + 1)])]
    assert holding.arrived.acquire(timeout=30)
    busy += [asked(gateway, f"{number}") for number in range(CALLS)]
    wait_until(gateway, len(busy))
    tracemalloc.start()
    for _ in range(5):
        leave(gateway, [LARGE] * count, beside=len(busy))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    holding.go.set()
    assert all(ended(one).status == 200 for one in busy)
    assert held < len(LARGE)
