"""TLS, tokens and headers, with real certificates against a real gRPC server; and that no secret ever shows."""

from __future__ import annotations

import contextlib
import copy
import datetime
import logging
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cnclip_client import (
    AccessDenied,
    BadFile,
    Client,
    CnclipError,
    Credentials,
    Retry,
    ServerUnreachable,
    Timeout,
    Tls,
    TlsFailed,
    served_models,
)

from tests.commands import run_command_text

SECRET = "s3cr3t-Zq9"
NOW = datetime.datetime.now(datetime.timezone.utc)


class Pki:
    """An authority, and files of what it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_cert = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_cert)

    def server(self, *names: str, mutual: bool = False, days: int = 1) -> grpc.ServerCredentials:
        dates = {"not_before": NOW - datetime.timedelta(days=9), "not_after": NOW + datetime.timedelta(days=days)}
        leaf = self.ca.issue_cert(*(names or ("127.0.0.1", "localhost")), **dates)
        pair = leaf.private_key_pem.bytes(), b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return grpc.ssl_server_credentials([pair], self.ca.cert_pem.bytes() if mutual else None, mutual)

    def client(self, name: str = "client") -> dict[str, Path]:
        leaf = self.ca.issue_cert(f"{name}.example")
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        leaf.cert_chain_pems[0].write_to_path(cert)
        leaf.private_key_pem.write_to_path(key)
        return {"client_cert": cert, "client_key": key}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("stranger"))


def connect(server: Any, credentials: Credentials | None = None, **options: Any) -> Client:
    patience = {"timeout": Timeout(connect_s=5), "retry": Retry(connect_attempts=1, first_delay_s=0.01)}
    return Client(server.url, model="vit-b-16", credentials=credentials, **{**patience, **options})


def bearer(fake: Any, token: str = SECRET) -> Callable[[dict[str, str]], None]:
    """What a proxy in front of Triton does."""

    def admit(headers: dict[str, str]) -> None:
        if headers.get("authorization") != f"Bearer {token}":
            raise fake.Fault(grpc.StatusCode.UNAUTHENTICATED, "no valid token")

    return admit


def test_tls_and_mutual_tls_work(serve: Callable[..., Any], fake: Any, pki: Pki) -> None:
    for mutual in (False, True):
        server = serve(*fake.both("vit-b-16"), credentials=pki.server(mutual=mutual))
        tls = Tls(ca_cert=pki.ca_cert, **(pki.client() if mutual else {}))
        with connect(server, Credentials(tls=tls)) as client:
            assert client.encode_texts(["a"] * 100).shape == (100, 16)
        assert served_models(server.url, credentials=Credentials(tls=tls)) == ("vit-b-16",)


def test_a_name_that_is_not_the_addresss_can_be_given(serve: Callable[..., Any], fake: Any, pki: Pki) -> None:
    server = serve(*fake.both("vit-b-16"), credentials=pki.server("triton.example"))
    with connect(server, Credentials(tls=Tls(ca_cert=pki.ca_cert, server_name="triton.example"))) as client:
        assert client.encode_texts(["a"]).shape == (1, 16)


def test_what_is_wrong_with_tls_is_said(serve: Callable[..., Any], fake: Any, pki: Pki, stranger: Pki) -> None:
    good, plain = serve(*fake.both("m"), credentials=pki.server()), serve(*fake.both("m"))
    named = serve(*fake.both("m"), credentials=pki.server("triton.example"))
    expired = serve(*fake.both("m"), credentials=pki.server(days=-1))
    trusting = Credentials(tls=Tls(ca_cert=pki.ca_cert))
    for server, credentials, words in [
        (good, Credentials(tls=Tls(ca_cert=stranger.ca_cert)), "not signed by an authority.*--ca-cert"),
        (good, Credentials(tls=Tls()), "not signed by an authority.*--ca-cert"),
        (named, trusting, "for another name.*--tls-server-name"),
        (expired, trusting, "has expired; have it renewed"),
        (plain, trusting, "does not speak TLS on this port"),
    ]:
        with connect(server, credentials) as client, pytest.raises(TlsFailed, match=words) as caught:
            client.encode_texts(["a"])
        assert "\n" not in str(caught.value)
        assert caught.value.url == server.url


def test_tls_that_only_the_server_complains_of_is_hinted_at(
    serve: Callable[..., Any], fake: Any, pki: Pki, stranger: Pki
) -> None:
    """TLS tells a client nothing of why it is not liked; nor does a TLS port one that speaks plaintext."""
    tls, mutual = (serve(*fake.both("m"), credentials=pki.server(mutual=mutual)) for mutual in (False, True))
    for server, credentials in [
        (tls, None),
        (mutual, Credentials(tls=Tls(ca_cert=pki.ca_cert))),
        (mutual, Credentials(tls=Tls(ca_cert=pki.ca_cert, **stranger.client()))),
    ]:
        with (
            connect(server, credentials) as client,
            pytest.raises(ServerUnreachable, match="whether it wants TLS or a client's certificate"),
        ):
            client.encode_texts(["a"])


def test_tls_without_http_2_is_told_as_such(pki: Pki) -> None:
    """As nginx and haproxy speak it unless told otherwise."""
    context, leaf = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), pki.ca.issue_cert("127.0.0.1")
    leaf.configure_cert(context)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as spoken:
                    spoken.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, model="m", credentials=Credentials(tls=Tls(ca_cert=pki.ca_cert))) as client:
            with pytest.raises(TlsFailed, match="speaks TLS, but not HTTP/2.*alpn h2"):
                client.encode_texts(["a"])


def test_a_failed_handshake_is_not_waited_for(serve: Callable[..., Any], fake: Any, pki: Pki, stranger: Pki) -> None:
    server = serve(*fake.both("vit-b-16"), credentials=pki.server())
    retry = Retry(attempts=100, connect_attempts=100, first_delay_s=1, max_delay_s=1)
    credentials = Credentials(tls=Tls(ca_cert=stranger.ca_cert))
    started = time.monotonic()
    with connect(server, credentials, retry=retry) as client, pytest.raises(TlsFailed):
        client.encode_texts(["a"])
    # And in the middle of a job: the server comes back with a certificate that is not trusted, at once or in a while.
    retry = Retry(attempts=1000, deadline_s=600, first_delay_s=0.1, max_delay_s=0.1)
    for seconds in (0.0, 0.5):
        server = serve(*fake.both("vit-b-16"), credentials=pki.server())
        with connect(server, Credentials(tls=Tls(ca_cert=pki.ca_cert)), retry=retry) as client:
            stream = client.iter_texts((f"{number}" for number in range(10**9)), batch_size=1)
            next(stream)
            server.stop()
            server._credentials = stranger.server()
            coming = threading.Timer(seconds, server.start)
            coming.start()
            with pytest.raises(TlsFailed):
                for _ in stream:
                    pass
            coming.join()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("alert", [b"\x01\x00", b"\x02\x50"], ids=["close_notify", "internal_error"])
def test_a_handshake_that_is_cut_off_is_waited_out(
    serve: Callable[..., Any], fake: Any, pki: Pki, alert: bytes
) -> None:
    """So a proxy answers that stops, or that has its certificate renewed."""
    server = serve(*fake.both("vit-b-16"), credentials=pki.server())
    retry = Retry(attempts=1000, deadline_s=60, first_delay_s=0.01, max_delay_s=0.1)
    with connect(server, Credentials(tls=Tls(ca_cert=pki.ca_cert)), retry=retry) as client:
        client.encode_texts(["a"])
        server.stop()
        with socket.create_server(("127.0.0.1", server.port)) as proxy:
            proxy.settimeout(10)
            coming = threading.Thread(target=lambda: client.encode_texts(["b"]), daemon=True)
            coming.start()
            for _ in range(3):
                connection, _ = proxy.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"\x15\x03\x03\x00\x02" + alert)
        server.start()
        assert client.encode_texts(["b"]).shape == (1, 16)
        coming.join(10)
        assert not coming.is_alive()


def test_files_that_cannot_be_used_are_named(pki: Pki, tmp_path: Path) -> None:
    own, other = pki.client("own"), pki.client("other")
    junk, encrypted = tmp_path / "junk.pem", tmp_path / "encrypted.key"
    junk.write_text("no certificate")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(own["client_key"].read_bytes(), None)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    for tls, path, words in [
        (Tls(ca_cert=tmp_path / "none.pem"), tmp_path / "none.pem", r"cannot be read \(No such file"),
        (Tls(ca_cert=tmp_path), tmp_path, "cannot be read"),
        (Tls(ca_cert=junk), junk, "no certificate in PEM"),
        (
            Tls(client_cert=own["client_cert"], client_key=other["client_key"]),
            other["client_key"],
            "is not the private",
        ),
        (Tls(client_cert=own["client_cert"], client_key=junk), junk, "no private key in PEM"),
        (Tls(client_cert=junk, client_key=own["client_key"]), junk, "no certificate in PEM"),
        (Tls(client_cert=own["client_cert"], client_key=encrypted), encrypted, "is encrypted"),
    ]:
        with pytest.raises(BadFile, match=words) as caught:
            Client("localhost:1", model="m", credentials=Credentials(tls=tls))
        assert caught.value.path == str(path)
    for half in ("client_cert", "client_key"):
        with pytest.raises(ValueError, match="give client_cert and client_key both"):
            Tls(**{half: junk})


@pytest.mark.parametrize("how", ["token", "token_file", "headers"])
def test_every_call_carries_the_token(triton: Any, fake: Any, tmp_path: Path, how: str) -> None:
    triton.admit = bearer(fake)
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    given: dict[str, Any] = {"token": SECRET, "token_file": path, "headers": {"Authorization": f"Bearer {SECRET}"}}
    credentials = Credentials(**{how: given[how]})
    with connect(triton, credentials) as client:
        assert client.encode_texts(["a"] * 100).shape == (100, 16)
        assert client.info.arch == "ViT-B-16"
    assert served_models(triton.url, credentials=credentials) == ("vit-b-16",)
    with connect(triton) as client, pytest.raises(AccessDenied, match="no valid token.*--token-file"):
        client.encode_texts(["a"])


def test_a_token_file_is_read_again(triton: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client._credentials._TOKEN_FILE_S", 0.0)
    path = tmp_path / "token"
    path.write_text("first")
    triton.admit = bearer(fake, "first")
    with connect(triton, Credentials(token_file=path)) as client:
        client.encode_texts(["a"])
        triton.admit = bearer(fake, "second")
        path.write_text("second")
        client.encode_texts(["a"])
        path.unlink()  # as it is replaced, it may be away for a moment
        client.encode_texts(["a"])


def test_a_restricted_protocol_is_named_as_such(triton: Any, fake: Any) -> None:
    """The words are Triton's own; they come as UNAVAILABLE, which is otherwise worth another try."""

    def admit(headers: dict[str, str]) -> None:
        if headers.get("triton-grpc-protocol-key") != SECRET:
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'key'")

    triton.admit = admit
    started = time.monotonic()
    with connect(triton, retry=Retry(connect_attempts=50)) as client:
        with pytest.raises(AccessDenied, match="protocol is restricted.*--header"):
            client.encode_texts(["a"])
    assert time.monotonic() - started < 3
    with connect(triton, Credentials(headers={"Triton-GRPC-Protocol-Key": SECRET})) as client:
        assert client.encode_texts(["a"]).shape == (1, 16)


@pytest.mark.parametrize(
    "url", ["example.com:8001", "10.0.0.1:8001", "dns:///host:1", "[fe80::1]:1", "127.0.0.1.nip.io:1"]
)
def test_secrets_do_not_travel_in_plaintext_to_another_machine(url: str) -> None:
    for secret in ({"token": SECRET}, {"headers": {"x-key": SECRET}}):
        with pytest.raises(ValueError, match=r"in plaintext.*--tls.*--allow-plaintext") as caught:
            Client(url, model="m", credentials=Credentials(**secret))
        assert SECRET not in str(caught.value)
        Client(url, model="m", credentials=Credentials(**secret, allow_plaintext=True)).close()
        Client(url, model="m", credentials=Credentials(**secret, tls=Tls())).close()


@pytest.mark.parametrize(
    "url",
    ["localhost:1", "127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "unix:/run/t", "ipv4:127.0.0.1:1", "dns:///localhost:1"],
)
def test_secrets_may_stay_on_this_machine(url: str) -> None:
    Client(url, model="m", credentials=Credentials(token=SECRET)).close()


@pytest.mark.parametrize(
    "given",
    [
        {"token": f"{SECRET}\n"},
        {"token": f"{SECRET} 密"},
        {"token": ""},
        {"headers": {"x-key": f"{SECRET}\r\nx: y"}},
        {"headers": {"x-key": f"{SECRET}密"}},
        {"headers": {"x key": SECRET}},
        {"headers": {"x-bin": SECRET}},
        {"headers": {"grpc-timeout": SECRET}},
        {"headers": {"": SECRET}},
        {"headers": {f"authorization=Bearer {SECRET}": "colon at the wrong place"}},
        {"token": SECRET, "token_file": Path("f")},
        {"token": SECRET, "headers": {"Authorization": SECRET}},
    ],
)
def test_what_http_cannot_carry_is_refused_without_quoting_it(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words differ, what they must not hold does not
        Credentials(**given)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="holds no token") as caught:
        Client("localhost:1", model="m", credentials=Credentials(token_file=path))
    assert "two words" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("password", [SECRET, f"{SECRET}@more", f"{SECRET}/#?more"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, password: str, scheme: str
) -> None:
    for variable in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, f"{scheme}user:{password}@127.0.0.1:9")
    retry = Retry(connect_attempts=1)
    with caplog.at_level("DEBUG"), Client("triton.invalid:8001", model="m", retry=retry) as client:
        with pytest.raises(ServerUnreachable, match=rf"the proxy {name}={scheme}\*\*\*@127.0.0.1:9 ") as caught:
            client.encode_texts(["a"])
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert SECRET not in told
    assert "more" not in told.replace("nothing more", "")
    monkeypatch.setenv(name, f"{scheme}127.0.0.1:9")
    with Client("triton.invalid:8001", model="m", retry=retry) as client:
        with pytest.raises(ServerUnreachable, match=f"the proxy {name}={scheme}127.0.0.1:9 "):
            client.encode_texts(["a"])


@pytest.mark.parametrize(
    "url",
    [
        f"user:{SECRET}@example.com:8001",
        f"{SECRET}@example.com:8001",
        f"http://user:{SECRET}@example.com:8001",
        f"dns:///user:{SECRET}@example.com:8001",
        f"a:1,user:{SECRET},x@example.com:8001",
    ],
)
def test_an_address_with_a_password_is_refused_without_quoting_it(url: str) -> None:
    for use in (lambda: Client(url, model="m"), lambda: served_models(url), lambda: Client(["a:1", url], model="m")):
        with pytest.raises(ValueError, match="before the @ of @example.com:8001.*--token-file") as caught:
            use()
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    Client("unix:/run/user@host/triton", model="m").close()


def test_secrets_are_not_in_repr_nor_pickled() -> None:
    credentials = Credentials(token=SECRET, headers={"x-key": SECRET})
    assert SECRET not in repr(credentials)
    assert SECRET not in repr(vars(Client("localhost:1", model="m", credentials=credentials)))
    for copying in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            copying(credentials)
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(Client("localhost:1", model="m", credentials=credentials))


def test_no_error_or_log_tells_a_secret(serve: Callable[..., Any], fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(*fake.both("vit-b-16"))
    told: list[str] = []

    def fail(code: grpc.StatusCode) -> Callable[[int, list[bytes]], None]:
        def before(attempt: int, items: list[bytes]) -> None:
            raise fake.Fault(code, "no")

        return before

    caplog.set_level(logging.DEBUG)
    credentials = Credentials(token=SECRET, headers={"x-key": SECRET})
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL):
        server.before_infer = fail(code)
        with connect(server, credentials, retry=Retry(attempts=2, first_delay_s=0.01)) as client:
            with pytest.raises(CnclipError) as caught:
                client.encode_texts(["a"])
            told.append("".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__))
            told.append(str(pickle.dumps(caught.value)))
    assert "again in" in caplog.text
    assert SECRET not in caplog.text
    assert not any(SECRET in text for text in told)


CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CNCLIP_")}


def cnclip(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_command_text("cnclip", *arguments, env={**CLEAN, **environment})


def test_the_command_takes_it_all_from_options_or_the_environment(
    serve: Callable[..., Any], fake: Any, pki: Pki, tmp_path: Path
) -> None:
    server = serve(*fake.both("vit-b-16"), credentials=pki.server(mutual=True))

    def admit(headers: dict[str, str]) -> None:
        bearer(fake)(headers)
        if headers.get("x-key") != f"{SECRET}2" or headers.get("x-tenant") != "a:b":
            raise fake.Fault(grpc.StatusCode.PERMISSION_DENIED, "no such tenant")

    server.admit = admit
    token, value = tmp_path / "token", tmp_path / "value"
    token.write_text(SECRET)
    value.write_text(f"{SECRET}2\n")
    own = pki.client()
    options = {
        "--url": server.url,
        "--ca-cert": str(pki.ca_cert),
        "--client-cert": str(own["client_cert"]),
        "--client-key": str(own["client_key"]),
        "--token-file": str(token),
    }
    headers = ["--header", "x-tenant: a:b", "--header", f"X-Key:@{value}"]
    done = cnclip("info", *(part for pair in options.items() for part in pair), *headers)
    assert (done.returncode, done.stderr) == (0, "")
    environment = {f"CNCLIP_{name[2:].replace('-', '_').upper()}": given for name, given in options.items()}
    del environment["CNCLIP_TOKEN_FILE"]
    environment |= {"CNCLIP_TOKEN": SECRET, "CNCLIP_HEADERS": f"x-tenant:a:b\nx-key:{SECRET}2\n"}
    done = cnclip("info", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = cnclip("info", "-v", **{**environment, "CNCLIP_HEADERS": f"x-key:{SECRET}3"})
    assert done.returncode == 3
    assert "no such tenant" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "example.com:1", "--header", f"x:{SECRET}"], "in plaintext"),
        (["--client-cert", "own.pem"], "give client_cert and client_key both"),
        (["--header", f"{SECRET}"], "a header has no colon"),
        (["--header", f"x:{SECRET}密"], "the value of header x"),
        (["--header", "x:@none"], "none: cannot be read"),
        (["--token-file", "none"], "none: cannot be read"),
        (["--ca-cert", "none"], "none: cannot be read"),
    ],
)
def test_wrong_options_are_one_line_of_usage(arguments: list[str], words: str) -> None:
    done = cnclip("info", "--model", "m", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert SECRET not in done.stderr


def test_no_secret_is_in_ps(serve: Callable[..., Any], fake: Any, tmp_path: Path) -> None:
    server = serve(*fake.both("vit-b-16"))
    server.admit = bearer(fake)
    seen: list[str] = []
    asked = threading.Event()

    def look(attempt: int, items: list[bytes]) -> None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.append(entry.read_text(errors="replace"))
            except OSError:
                continue
        asked.set()

    server.before_infer = look
    command = [sys.executable, "-c", "from cnclip_client._cli import main; main()", "features", "texts", "a"]
    done = subprocess.run([*command, "--url", server.url], capture_output=True, env={**CLEAN, "CNCLIP_TOKEN": SECRET})
    assert done.returncode == 0
    assert asked.is_set()
    assert any("cnclip_client" in line for line in seen)
    assert not any(SECRET in line for line in seen)
