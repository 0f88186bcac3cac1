"""The command itself: what it prints, how it ends, and one line for what is wrong."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cnclip_gateway._cli import app
from cnclip_gateway._serve import server_of
from cnclip_gateway._settings import Settings
from starlette.applications import Starlette
from typer.testing import CliRunner

from tests.client.conftest import FakeTriton
from tests.commands import run_command_text

COMMAND = [sys.executable, "-W", "error", "-c", "from cnclip_gateway._cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **more}


@contextmanager
def started(*options: str, code: str = COMMAND[-1], **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it listens, and its address."""
    process = subprocess.Popen(
        [*COMMAND[:-1], code, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )
    try:
        assert process.stdout is not None
        address = ""
        while not address and (line := process.stdout.readline()):
            address = line.partition("gateway  ")[2].strip()
        assert address, process.communicate()[1]
        yield process, address
    finally:
        process.kill()
        process.communicate()


def get(address: str, path: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, bytes]:
    scheme, _, host = address.partition("://")
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(host, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post(address: str, text: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/v1/embeddings", json.dumps({"input": text}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(triton: FakeTriton, told: signal.Signals) -> None:
    with started("--url", triton.url) as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        status, body = get(address, "/v1/models")
        assert (status, json.loads(body)["data"][0]["id"]) == (200, "vit-b-16")
        process.send_signal(told)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "stopped\n")


def test_who_waits_while_it_ends_is_told_to_come_again(triton: FakeTriton) -> None:
    """What takes longer than the last answers may, and neither a bare 500 nor a traceback."""
    released = threading.Event()
    code = "from cnclip_gateway import _serve; _serve._LAST_ANSWERS_S = 1; from cnclip_gateway._cli import main; main()"
    with started("--url", triton.url, code=code) as (process, address), ThreadPoolExecutor(1) as pool:
        try:
            assert post(address, "warm")[0] == 200
            arrived = threading.Event()

            def hold(attempt: int, items: list[bytes]) -> None:
                arrived.set()
                released.wait(30)

            triton.before_infer = hold
            asked = pool.submit(post, address, "x")
            assert arrived.wait(30)
            process.send_signal(signal.SIGTERM)
            status, body = asked.result(30)
            _, err = process.communicate(timeout=60)
        finally:
            released.set()
    assert (status, json.loads(body)["error"]["code"]) == (503, "ending")
    assert process.returncode == 0
    assert "Traceback" not in err


def test_keys_of_a_file_and_of_the_environment(triton: FakeTriton, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfone\r\n\n two \n")
    with started("--url", triton.url, "--api-key-file", str(tmp_path / "keys")) as (_, address):
        assert get(address, "/v1/models")[0] == 401
        for key in ("one", "two"):
            assert get(address, "/v1/models", Authorization=f"Bearer {key}")[0] == 200
    # One of odd letters is a key too.
    with started(CNCLIP_API_KEY="three\udcff", CNCLIP_URL=triton.url) as (_, address):
        assert get(address, "/v1/models")[0] == 401
        assert get(address, "/v1/models", Authorization="Bearer one")[0] == 401
        assert get(address, "/v1/models", Authorization="Bearer three\xff")[0] == 200


def test_a_blank_key_is_none() -> None:
    refused = run_command_text("cnclip-gateway", env={**os.environ, "CNCLIP_API_KEY": "  "})
    assert refused.returncode == 2
    assert refused.stderr == ("cnclip-gateway: CNCLIP_API_KEY is blank; put the key in it, or unset it to let all in\n")


def test_https(triton: FakeTriton, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for part in issued.cert_chain_pems:
        part.write_to_path(str(tmp_path / "cert.pem"), append=True)
    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with started("--url", triton.url, *files) as (_, address):
        assert address.startswith("https://")
        assert get(address, "/health", context)[0] == 200


def test_a_renewed_certificate_is_taken(tmp_path: Path) -> None:
    """Connections that are there go on; one of which half is renewed is not taken."""
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = [trustme.CA().issue_cert("127.0.0.1") for _ in range(2)]

    def write(part: Any, file: Path) -> None:
        part.write_to_path(str(tmp_path / "new"))
        (tmp_path / "new").replace(file)

    def presented() -> str:
        ours, theirs = socket.socketpair()
        asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
        with ThreadPoolExecutor(1) as pool:
            answering = pool.submit(context.wrap_socket, theirs, server_side=True)
            with asking.wrap_socket(ours) as ended:
                certificate = ssl.DER_cert_to_PEM_cert(ended.getpeercert(binary_form=True) or b"")
            answering.result(30).close()
        return certificate.strip()

    pems = [one.cert_chain_pems[0].bytes().decode().strip() for one in issued]
    write(issued[0].cert_chain_pems[0], files[0])
    write(issued[0].private_key_pem, files[1])
    config = server_of(Starlette(), Settings(), files, verbose=False).config
    # In the event loop, which the handshakes are in: OpenSSL crashes where two threads use a context so.
    context, look = config.ssl, config.callback_notify
    assert context is not None
    assert look is not None
    assert config.timeout_notify < 10
    assert presented() == pems[0]
    for part, file, then in (
        (issued[1].cert_chain_pems[0], files[0], pems[0]),
        (issued[1].private_key_pem, files[1], pems[1]),
    ):
        write(part, file)
        asyncio.run(look())
        assert presented() == then


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (["--images", "photos/"], "say with --index what it searches"),
        (["--body-mib", "64", "--held-mib", "64"], "--held-mib must be more than --body-mib"),
        (["--api-key-file", "no-such-file"], "no-such-file: cannot be read"),
        (["--api-key-file", "/dev/null"], "/dev/null: holds no key"),
        (["--index", "no-such-folder"], "no-such-folder"),
        (["--url", "localhost"], "localhost"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "cnclip-gateway: no.pem: No such file or directory; check"),
        (["--tls-cert", "/dev/null", "--tls-key", "/dev/null"], "cannot be used together"),
        (["--host", "no-such-host.invalid"], "no-such-host.invalid:0: "),
        # None of these would ever be met, and nothing would say so.
        (["--fetch-from", "https://images.example.com"], "name each host"),
        (["--fetch-from", "*.example.com"], "name each host"),
        (["--fetch-from", "images.example.com/photos"], "name each host"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["--port", "0", *options])
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert "Traceback" not in result.output


def test_a_key_that_is_anothers_or_wants_a_passphrase(tmp_path: Path) -> None:
    """Nobody is asked for it: a container would wait for an answer for ever."""
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    authority = trustme.CA()
    for name in ("a", "b"):
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    key = serialization.load_pem_private_key((tmp_path / "a.key").read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "secret.key").write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"x")))
    for name in ("b.key", "secret.key"):
        options = ["--port", "0", "--tls-cert", str(tmp_path / "a.pem"), "--tls-key", str(tmp_path / name)]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 2
        assert f"{name} cannot be used together" in result.output
        assert len(result.output.strip().splitlines()) == 1, result.output


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_what_is_no_port(port: str) -> None:
    result = CliRunner().invoke(app, ["--port", port])
    assert result.exit_code == 2
    assert "--port" in result.output


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "Address already in use; choose another --port, or 0 for any free one" in result.output


def test_a_port_of_roots(port_of_root: int) -> None:
    result = CliRunner().invoke(app, ["--port", str(port_of_root)])
    assert result.exit_code == 2
    assert "Permission denied; choose a --port from 1024 on" in result.output


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "starlette").mkdir()
    (tmp_path / "starlette/__init__.py").write_text("raise ModuleNotFoundError('no', name='starlette')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [*COMMAND, "--port", "0"],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "cnclip-gateway: this needs starlette, which is not installed; pip install 'cn-clip-triton[gateway]'\n"
    )
