"""Who may ask the server what: TLS, and the APIs that are closed unless opened."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
import trustme
from cnclip_server import SettingError, Tls, TritonServer
from cnclip_server._cli import app
from cnclip_server._settings import check_flags, restriction_headers
from cryptography.hazmat.primitives import serialization
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

pytestmark = pytest.mark.triton

FREE = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "client-cert", "client-key")}
    authority.cert_pem.write_to_path(paths["ca"])
    for prefix, issued in (
        ("", authority.issue_cert("127.0.0.1")),
        ("client-", authority.issue_cert("me@example.org")),
    ):
        issued.cert_chain_pems[0].write_to_path(paths[f"{prefix}cert"])
        issued.private_key_pem.write_to_path(paths[f"{prefix}key"])
    return paths


def is_live(url: str, **tls: Any) -> bool:
    try:
        with grpc.InferenceServerClient(url, **tls) as client:
            return bool(client.is_server_live(client_timeout=5))
    except InferenceServerException:
        return False


def test_tls(repository: Any, files: dict[str, Path]) -> None:
    tls = Tls(files["cert"], files["key"])
    with TritonServer(repository.path, host="0.0.0.0", tls=tls, **FREE) as server:
        assert is_live(server.grpc_url, ssl=True, root_certificates=str(files["ca"]))
        assert not is_live(server.grpc_url)
        # HTTP, which is plain, is not for other machines.
        port = int(server.http_url.partition(":")[2])
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
        assert server.models() == ["echo"]


def test_mutual_tls(repository: Any, files: dict[str, Path]) -> None:
    tls = Tls(files["cert"], files["key"], client_ca=files["ca"])
    with TritonServer(repository.path, tls=tls, **FREE) as server:
        ours = {"ssl": True, "root_certificates": str(files["ca"])}
        shown = {"private_key": str(files["client-key"]), "certificate_chain": str(files["client-cert"])}
        assert is_live(server.grpc_url, **ours, **shown)
        assert not is_live(server.grpc_url, **ours)


def test_apis_that_reach_into_the_server_are_closed(repository: Any) -> None:
    with TritonServer(repository.path, **FREE) as server:
        with grpc.InferenceServerClient(server.grpc_url) as client:
            for call in (client.get_log_settings, client.get_trace_settings, client.get_system_shared_memory_status):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call()
            with pytest.raises(InferenceServerException, match=r"explicit model load / unload is not allowed"):
                client.unload_model("echo")
            assert client.get_inference_statistics("echo").model_stats
        connection = http.client.HTTPConnection(server.http_url)
        connection.request("GET", "/v2/logging", headers={"Connection": "close"})
        answer = connection.getresponse()
        assert (answer.status, b"restricted" in answer.read()) == (403, True)
        connection.close()


def test_the_admin_key_opens_them(repository: Any) -> None:
    with TritonServer(repository.path, admin_key="open-sesame", **FREE) as server:
        with grpc.InferenceServerClient(server.grpc_url) as client:
            headers = {"triton-grpc-protocol-admin-key": "open-sesame"}
            assert client.get_log_settings(headers=headers)
            with pytest.raises(InferenceServerException, match="restricted"):
                client.get_log_settings(headers={"triton-grpc-protocol-admin-key": "guess"})


def test_ones_own_restrictions_replace_ours(repository: Any) -> None:
    flags = ["--grpc-restricted-protocol=statistics:mine=1"]
    with TritonServer(repository.path, extra_args=flags, **FREE) as server:
        with grpc.InferenceServerClient(server.grpc_url) as client:
            assert client.get_log_settings()
            with pytest.raises(InferenceServerException, match="restricted"):
                client.get_inference_statistics()


@pytest.mark.parametrize("content", [None, "no certificate", "\xff"])
def test_a_file_that_is_no_pem(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(SettingError, match=r"cert\.pem (can't be read|is no PEM file)"):
        Tls(path, path)


def encrypted(key: Path) -> Path:
    """A key that wants a passphrase, beside another that does not."""
    secret = serialization.BestAvailableEncryption(b"secret")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    path = key.with_name("encrypted.pem")
    path.write_bytes(loaded.private_bytes(*form, secret))
    return path


def test_files_that_do_not_go_together_are_named(files: dict[str, Path]) -> None:
    """Triton itself says of them that the port is in use."""
    for key in (files["client-key"], encrypted(files["key"])):
        with pytest.raises(
            SettingError, match=rf"cert\.pem and {re.escape(str(key))} can't be used together .*passphrase"
        ):
            Tls(files["cert"], key)
    with pytest.raises(SettingError, match=r"key\.pem can't be used \(.*PEM file of certificates"):
        Tls(files["cert"], files["key"], client_ca=files["key"])


def test_half_a_pair(repository: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(repository.path), "--tls-cert", str(tmp_path / "c.pem")])
    assert result.exit_code == 2
    assert "go together" in result.stderr


def test_what_opens_that_a_servers_own_flags_restrict() -> None:
    flag = "--http-restricted-api"
    own = [f"{flag}=metadata:a=x=y", flag, "health:b=1", "--log-verbose=1", flag, "model-repository:c=2", flag]
    assert restriction_headers(own) == {"a": "x=y", "b": "1", "c": "2"}
    assert restriction_headers(()) == {}


@pytest.mark.parametrize("flags", [["--grpc-port=1"], ["--id=a", "--http-port", "1"], ["--metrics-port=1"]])
def test_a_port_that_is_given_to_tritonserver_alone(repository: Any, flags: list[str]) -> None:
    """The server came up elsewhere than was told, or was given up after --startup-timeout, with its port in no word."""
    result = CliRunner().invoke(app, [str(repository.path), "--", *flags])
    assert result.exit_code == 1
    assert re.fullmatch(
        r"error: --(grpc|http|metrics)-port must be known here: give it to cnclip-serve itself, before `--`\n",
        result.stderr,
    )


@pytest.mark.parametrize("flags", [["--allow-http=OFF"], ["--allow-http", "0"]])
def test_a_server_that_nobody_could_ask(flags: list[str]) -> None:
    with pytest.raises(SettingError, match=r"by HTTP it is found out whether models are ready"):
        check_flags(flags, "127.0.0.1", "127.0.0.1")
    check_flags(["--allow-http=true", "--allow-metrics=false", "--log-verbose", "1"], "127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("service", ["grpc", "http", "metrics"])
def test_an_address_at_which_nobody_asks(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a port; what is reached at the address that is asked may be narrower than --host, or wider."""
    flag = f"--{service}-address"
    with pytest.raises(SettingError, match=f"{flag}=10.0.0.5 would be where the server is not asked: give --host"):
        check_flags([flag, "10.0.0.5"], "10.0.0.5" if service == "http" else "127.0.0.1", "127.0.0.1")
    check_flags([f"{flag}=0.0.0.0", f"{flag}=127.0.0.1"], "127.0.0.1", "127.0.0.1")
    check_flags([f"{flag}=127.0.0.1"], "localhost", "localhost")
    monkeypatch.delattr("socket.gethostbyname")  # a resolver may take long, and is not asked without need
    check_flags([f"{flag}=triton.internal"], "triton.internal", "triton.internal")
