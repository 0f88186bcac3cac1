"""Pictures at addresses: only of hosts that were named, only public ones, and no more than was asked for."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cnclip_gateway import _fetching
from cnclip_gateway._bodies import Held
from cnclip_gateway._errors import NotNow
from cnclip_gateway._fetching import Fetcher, public_address
from cnclip_gateway._items import Address
from cnclip_gateway._metrics import Metrics

from tests.client.conftest import FakeTriton
from tests.gateway.conftest import Running

PNG = b"\x89PNG\r\n\x1a\n fetched"


class Site(BaseHTTPRequestHandler):
    """What is at the addresses."""

    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            if self.path == "/short":
                self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(PNG if self.path != "/large" else b"x" * 2_000_000)
            while self.path == "/slow":
                try:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
                except OSError:
                    break

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def site() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetched(fetcher: Fetcher, *urls: str) -> list[Any]:
    try:
        with fetcher.filled([Address(url) for url in urls]) as items:
            return items
    finally:
        fetcher.close()


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("::", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "5f00::1", "2001::1", "ff0e::1"),
    ],
)
def test_addresses_that_are_not_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Whatever leads to them: a host's name is as good as what it is looked up to."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]
    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
    for looked_up in (found, public + found):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, it=looked_up, **__: it)
        with pytest.raises(ValueError, match="not public"):
            public_address("innocent.example", 80)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: public)
    assert public_address("innocent.example", 80) == "93.184.216.34"


def test_a_named_host_inside_is_not_fetched_from(run: Callable[..., Running], triton: FakeTriton) -> None:
    with site() as server:
        here = f"127.0.0.1:{server.server_port}"
        gateway = run(triton.url, hosts=(here, f"localhost:{server.server_port}"))
        for host in (here, f"localhost:{server.server_port}"):
            answer = gateway.embed({"image": f"http://{host}/a.png"})
            assert answer.status == 400
            assert "leads to an address that is not public" in answer.error["message"]
        assert server.asked == []  # type: ignore[attr-defined]


def test_hosts_that_were_not_named_are_not_even_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    urls = (
        *("http://example.com/a", "https://images.example.com.evil.example/a", "http://images.example.com:8080/a"),
        *("http://user:secret@images.example.com/a", "http://images.example.com@evil.example/a", "http:///a"),
        *("http://images.example.com:99999/a", "http://images.example.com:x/a", "http://[::1/a", "http://[::1]/a"),
        *("https://evil.example\\@images.example.com/a", "http://images.example.com\t.evil.example/"),
    )
    for url, found in zip(
        urls, fetched(Fetcher(["images.example.com"], 1000, 1, Held(10**9, Metrics())), *urls), strict=True
    ):
        assert isinstance(found, ValueError), url


def test_no_more_open_files_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", full)
    with pytest.raises(NotNow, match="the gateway has no room") as refused:
        fetched(Fetcher(["example.com"], 1000, 1, Held(10**9, Metrics())), "http://example.com/a.png")
    assert refused.value.status == 503


class TestOfAHostThatIsTakenForPublic:
    @pytest.fixture(autouse=True)
    def _all_public(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_fetching, "_is_public", lambda _: True)

    def test_pictures_come_in_their_order(self, run: Callable[..., Running], triton: FakeTriton) -> None:
        with site() as server:
            base = f"http://127.0.0.1:{server.server_port}"
            gateway = run(triton.url, hosts=(f"127.0.0.1:{server.server_port}",))
            answer = gateway.embed(["text", {"image": f"{base}/a.png?x=1&y=游隼"}, {"image": f"{base}/图.png"}])
            assert answer.status == 200, answer.body
            asked = sorted(server.asked)  # type: ignore[attr-defined]
            assert asked == ["/%E5%9B%BE.png", "/a.png?x=1&y=%E6%B8%B8%E9%9A%BC"]
            assert [PNG, PNG] in triton.requests
            answer = gateway.embed([{"image": f"{base}/missing"}, {"image": f"{base}/a"}, {"image": f"{base}/moved"}])
            assert "input[0] answers 404" in answer.error["message"]
            assert "input[2] answers 302; give the address of the image itself" in answer.error["message"]

    def test_they_are_bounded_together(self) -> None:
        with site() as server:
            host = f"127.0.0.1:{server.server_port}"
            (one,) = fetched(Fetcher([host], 3_000_000, 30, Held(10**9, Metrics())), f"http://{host}/large")
            assert len(one) == 2_000_000
            found = fetched(Fetcher([host], 3_000_000, 30, Held(10**9, Metrics())), *[f"http://{host}/large"] * 2)
            assert "all addresses of the request together" in str(next(one for one in found if type(one) is ValueError))

    def test_a_host_that_sends_a_byte_now_and_then_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_fetching, "_EACH_S", 0.3)
        with site() as server:
            host = f"127.0.0.1:{server.server_port}"
            began = time.monotonic()
            (found,) = fetched(Fetcher([host], 1_000_000, 30, Held(10**9, Metrics())), f"http://{host}/slow")
            assert time.monotonic() - began < 20
        assert "took too long" in str(found)  # and what had come by then is no picture

    def test_what_all_requests_hold_counts_them_too(self) -> None:
        metrics = Metrics()
        with site() as server:
            host = f"127.0.0.1:{server.server_port}"
            fetcher, large = Fetcher([host], 5_000_000, 30, Held(3_000_000, metrics)), Address(f"http://{host}/large")
            with fetcher.filled([large]):
                assert b"cnclip_gateway_held_bytes 2e+06" in metrics.text()
                with pytest.raises(NotNow, match="requests hold too much memory at present"), fetcher.filled([large]):
                    pass
                assert b"cnclip_gateway_held_bytes 2e+06" in metrics.text()
            fetcher.close()
        assert b"cnclip_gateway_held_bytes 0.0" in metrics.text()

    def test_what_ends_early_is_no_picture(self) -> None:
        with site() as server:
            host = f"127.0.0.1:{server.server_port}"
            (found,) = fetched(Fetcher([host], 1_000_000, 30, Held(10**9, Metrics())), f"http://{host}/short")
            assert "ended before its end" in str(found)

    def test_there_is_no_time_for_all(self) -> None:
        with site() as server:
            host = f"127.0.0.1:{server.server_port}"
            (found,) = fetched(Fetcher([host], 1_000_000, 0.0, Held(10**9, Metrics())), f"http://{host}/a")
            assert "no time left" in str(found)

    def test_nobody_listens_there_or_the_name_is_unknown(self) -> None:
        with site() as server:
            port = server.server_port
        hosts = [f"127.0.0.1:{port}", "no-such-host.invalid"]
        found = fetched(
            Fetcher(hosts, 1000, 20, Held(10**9, Metrics())),
            f"http://{hosts[0]}/a",
            f"http://{hosts[1]}/a",
            f"https://{hosts[0]}/a",
        )
        assert all("could not be fetched" in str(one) for one in found)
