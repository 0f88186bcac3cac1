"""A client that is started beside its server: who is patient waits for it, and for its model; nobody for a mistake."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from cnclip_client import (
    Client,
    CnclipError,
    Credentials,
    ModelNotFound,
    ModelNotReady,
    Retry,
    ServerUnreachable,
    Tls,
    TlsFailed,
    served_models,
)
from cnclip_client.command_line import Server

PATIENT = Retry.patient(20)


def later(action: Callable[[], object], delay_s: float = 0.5) -> threading.Timer:
    timer = threading.Timer(delay_s, action)
    timer.start()
    return timer


def set_state(server: Any, state: str, reason: str = "") -> None:
    for model in server.models.values():
        model.state, model.reason = state, reason


@pytest.mark.parametrize("count", [1, 2])
def test_a_server_that_is_not_there_yet(serve: Any, fake: Any, caplog: pytest.LogCaptureFixture, count: int) -> None:
    servers = [serve(*fake.both("vit-b-16")) for _ in range(count)]
    for server in servers:
        server.stop()
    starting = later(servers[-1].start)
    with Client([server.url for server in servers], model="vit-b-16", retry=PATIENT) as client:
        assert client.encode_texts(["a"]).shape == (1, fake.dimension)
    starting.join()
    told = [
        record.getMessage() for record in caplog.records if "waiting for it, for 20 s at most" in record.getMessage()
    ]
    assert len(told) <= 1


def test_waiting_is_told_once(triton: Any, caplog: pytest.LogCaptureFixture) -> None:
    triton.stop()
    retry = Retry(attempts=1_000_000, connect_attempts=1, start_s=0.5, first_delay_s=0.02)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), Client(triton.url, model="vit-b-16", retry=retry) as client:
        with pytest.raises(ServerUnreachable):
            client.encode_texts(["a"])
    assert 0.5 < time.monotonic() - started < 5
    assert len([record for record in caplog.records if "waiting for it, for 0.5 s" in record.getMessage()]) == 1


@pytest.mark.parametrize(("state", "reason"), [("LOADING", ""), ("", ""), ("UNAVAILABLE", "unloaded")])
def test_a_model_that_is_not_loaded_yet(triton: Any, fake: Any, state: str, reason: str) -> None:
    set_state(triton, state, reason)
    loading = later(lambda: set_state(triton, "READY"))
    with Client(triton.url, model="vit-b-16", retry=PATIENT) as client:
        assert client.encode_texts(["a"]).shape == (1, fake.dimension)
    loading.join()


@pytest.mark.parametrize("state", ["LOADING", ""])
def test_the_only_model_is_found_once_it_is_loaded(triton: Any, state: str) -> None:
    set_state(triton, state)
    loading = later(lambda: set_state(triton, "READY"))
    assert served_models(triton.url) == ()
    assert served_models(triton.url, retry=PATIENT) == ("vit-b-16",)
    loading.join()
    set_state(triton, state)
    loading = later(lambda: set_state(triton, "READY"), 0.5)
    with Server(url=[triton.url]).connect(retry=PATIENT) as client:
        assert "vit-b-16" in repr(client)
    loading.join()


def test_one_of_two_models_is_not_taken_while_the_other_loads(serve: Any, fake: Any) -> None:
    server = serve(*fake.both("vit-b-16"), *fake.both("vit-l-14"))
    for kind in ("image", "text"):
        server.models[f"vit-l-14-{kind}"].state = "LOADING"
    loading = later(lambda: set_state(server, "READY"), 0.5)
    assert served_models(server.url, retry=PATIENT) == ("vit-b-16", "vit-l-14")
    loading.join()


def test_what_will_not_come_is_not_waited_for(triton: Any, serve: Any, fake: Any, tmp_path: Any) -> None:
    def failing(error: type[CnclipError], words: str, model: str = "vit-b-16", tls: Tls | None = None) -> None:
        credentials = Credentials(tls=tls)
        with Client(triton.url, model=model, retry=PATIENT, credentials=credentials) as client:
            with pytest.raises(error, match=words):
                client.encode_texts(["a"])

    started = time.monotonic()
    failing(ModelNotFound, "it serves vit-b-16", model="vit-b-61")
    failing(TlsFailed, "no TLS connection", tls=Tls())
    set_state(triton, "UNAVAILABLE", "Internal: failed to load, no such file")
    failing(ModelNotReady, "no such file")
    assert served_models(triton.url, retry=PATIENT) == ()
    assert time.monotonic() - started < 5


def test_who_is_not_patient_gives_up_soon(triton: Any) -> None:
    set_state(triton, "LOADING")
    started = time.monotonic()
    with Client(triton.url, model="vit-b-16") as client, pytest.raises(ModelNotReady):
        client.encode_texts(["a"])
    triton.stop()
    with Client(triton.url, model="vit-b-16") as client, pytest.raises(ServerUnreachable):
        client.encode_texts(["a"])
    assert time.monotonic() - started < 3
