"""Who is let in, and what every answer says to browsers."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from tests.client.conftest import FakeTriton
from tests.gateway.conftest import Running

KEYS = (b"first-key", "zweiter-schlüssel".encode())


@pytest.fixture
def closed(run: Callable[..., Running], triton: FakeTriton) -> Running:
    return run(triton.url, keys=KEYS)


def basic(name: str, key: bytes) -> str:
    return "Basic " + base64.b64encode(name.encode() + b":" + key).decode()


@pytest.mark.parametrize("key", KEYS)
def test_any_of_the_keys_opens(closed: Running, key: bytes) -> None:
    sent = key.decode("latin-1")  # as http.client writes headers
    assert closed.embed("x").status == 401
    assert closed.ask("GET", "/v1/models", Authorization=f"Bearer {sent}").status == 200
    assert closed.ask("GET", "/v1/models", Authorization=f"bearer  {sent} ").status == 200
    assert closed.ask("GET", "/v1/models", Authorization=basic("anybody", key)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", "Bearer first-ke", "Bearer first-key2", "first-key", "Basic first-key", "Basic !!!"),
        *("Digest first-key", basic("first-key", b""), basic("x", b"first-keys"), "Bearer " + "x" * 10_000),
    ],
)
def test_nothing_else_does(closed: Running, triton: FakeTriton, header: str) -> None:
    answer = closed.ask("POST", "/v1/embeddings", {"input": "x"}, Authorization=header)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert triton.requests == []


def test_a_body_is_not_read_of_who_has_no_key(closed: Running) -> None:
    answer = closed.ask("POST", "/v1/embeddings", b"x" * (1024 * 1024))
    assert answer.status == 401
    assert closed.metric("cnclip_gateway_held_bytes") == 0


def test_who_looks_after_it_needs_none(closed: Running) -> None:
    for path in ("/health", "/health/live", "/metrics", "/docs", "/openapi.json", "/pages/docs.css"):
        assert closed.ask("GET", path).status == 200, path
    for path in ("/", "/search?q=x", "/thumbnails/0", "/pages/search.js", "/v1/models", "/nothing", "//health"):
        assert closed.ask("GET", path).status == 401, path
    # So that a browser asks for it by itself.
    assert closed.ask("GET", "/").headers["WWW-Authenticate"].startswith("Basic ")


def test_every_answer_tells_browsers_to_keep_to_what_it_is(closed: Running) -> None:
    for path in ("/docs", "/v1/models", "/health", "/nothing"):
        headers = closed.ask("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Access-Control-Allow-Origin"] is None
        assert headers["Server"] is None
