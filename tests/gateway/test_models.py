"""What stands behind it comes, goes, changes, and is sick."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from tests.client.conftest import FakeTriton, Fault, both, tower
from tests.gateway.conftest import Running, models_of


def test_a_server_that_is_away_and_comes_back(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url)
    assert gateway.ask("GET", "/health").json == {"status": "ok"}
    assert gateway.embed("x").status == 200
    triton.stop()
    answer = gateway.embed("x")
    assert (answer.status, answer.error["type"]) == (503, "server_error")
    assert answer.error["code"] == "server_unreachable"
    assert answer.headers["Retry-After"] == "2"
    # What stands behind it is nobody's business who asks.
    assert str(triton.port) not in answer.error["message"]
    answer = gateway.ask("GET", "/health")
    assert (answer.status, answer.error["code"]) == (503, "server_unreachable")
    assert gateway.ask("GET", "/health/live").status == 200
    triton.start()
    deadline = time.monotonic() + 30  # gRPC waits before it connects again
    while (status := gateway.embed("x").status) == 503 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == 200
    assert gateway.ask("GET", "/health").status == 200


def test_a_server_that_is_not_there_yet(run: Callable[..., Running], triton: FakeTriton) -> None:
    triton.stop()
    gateway = run(triton.url)
    assert gateway.ask("GET", "/health").status == 503
    assert gateway.ask("GET", "/v1/models").status == 503
    assert gateway.embed("x").status == 503
    triton.start()
    assert gateway.embed("x").status == 200


def test_one_sick_server_of_two_is_not_noticed(run: Callable[..., Running], serve: Callable[..., FakeTriton]) -> None:
    sound, sick = serve(*both("vit-b-16")), serve(*both("vit-b-16"))
    gateway = run([sick.url, sound.url])

    def fail(attempt: int, items: list[bytes]) -> None:
        raise Fault(grpc.StatusCode.INTERNAL, "out of memory")

    sick.before_infer = fail
    answers = [gateway.embed(f"text {number}").status for number in range(20)]
    assert answers == [200] * 20
    assert sick.requests
    sick.stop()
    answers = [gateway.embed(f"text {number}").status for number in range(20)]
    assert answers == [200] * 20
    assert gateway.ask("GET", "/health").status == 200


def test_a_model_that_was_replaced_is_answered_with_by_the_new_one(
    run: Callable[..., Running], triton: FakeTriton
) -> None:
    gateway = run(triton.url)
    old = gateway.embed("x").json
    triton.stop()
    triton.models = {one.name: one for one in both("vit-b-16", sha="b" * 64, dimension=24)}
    triton.start()
    new = gateway.embed("x")
    assert new.status == 200
    assert [len(one["data"][0]["embedding"]) for one in (old, new.json)] == [16, 24]


def test_a_model_that_is_gone(run: Callable[..., Running], serve: Callable[..., FakeTriton]) -> None:
    triton = serve(*both("a"), *both("b"))
    gateway = run(triton.url)
    assert gateway.embed("x", model="a").status == 200
    for kind in ("text", "image"):
        del triton.models[f"a-{kind}"]
    answer = gateway.embed("y", model="a")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "this serves b" in answer.error["message"]
    assert gateway.embed("x", model="b").status == 200


def test_a_server_with_one_tower(run: Callable[..., Running], serve: Callable[..., FakeTriton]) -> None:
    gateway = run(serve(tower("only", "text")).url)
    assert gateway.embed("x", model="only").status == 200
    answer = gateway.embed({"image": "aGVsbG8="}, model="only")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert gateway.ask("GET", "/health").status == 200


def test_a_server_that_lists_nothing_still_serves_a_named_model(
    run: Callable[..., Running], triton: FakeTriton
) -> None:
    triton.index_enabled = False
    gateway = run(triton.url, only="vit-b-16")
    assert gateway.embed("x").status == 200
    assert gateway.ask("GET", "/health").status == 200
    assert gateway.ask("GET", "/v1/models").json["data"][0]["id"] == "vit-b-16"


def test_many_at_once_each_get_their_own(gateway: Running) -> None:
    expected = {text: gateway.embed(text).json["data"] for text in map(str, range(8))}
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(10):
            text = str((number + turn) % 8)
            if gateway.embed(text).json["data"] != expected[text]:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_a_replaced_models_client_is_closed_once_nobody_uses_it(triton: FakeTriton) -> None:
    models = models_of(triton.url)
    first = models.run("vit-b-16", lambda client: client)
    models.run("vit-b-16", lambda client: client.encode_texts(["x"]))
    for name, model in list(triton.models.items()):
        parameters = {**model.parameters, "checkpoint_sha256": "c" * 64}
        triton.models[name] = replace(model, parameters=parameters)
    models.require_one()  # finds out
    second = models.run("vit-b-16", lambda client: client)
    assert second is not first
    with pytest.raises(RuntimeError, match="closed"):
        first.encode_texts(["x"])
    assert len(second.encode_texts(["x"])) == 1
    models.close()
    with pytest.raises(RuntimeError, match="closed"):
        models.run("vit-b-16", lambda client: client)
