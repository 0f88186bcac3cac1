"""The client and a real tritonserver that speaks TLS to clients with a certificate, and restricts its protocols."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from cnclip_client import (
    AccessDenied,
    Client,
    Credentials,
    ModelChanged,
    Retry,
    ServerUnreachable,
    Tls,
    TlsFailed,
    served_models,
)
from cnclip_server import TritonServer

pytestmark = pytest.mark.triton

KEY = "s3cr3t-Zq9"
TEXTS = [f"第{number}张图片" for number in range(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secure")


@pytest.fixture(scope="module")
def tls(folder: Path) -> Tls:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name, host in (("server", "127.0.0.1"), ("client", "client.example")):
        leaf = ca.issue_cert(host)
        leaf.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
    return Tls(ca_cert=folder / "ca.pem", client_cert=folder / "client.pem", client_key=folder / "client.key")


@pytest.fixture(scope="module")
def server(demo_repository: Path, folder: Path, tls: Tls) -> Iterator[TritonServer]:
    flags = [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={folder / 'server.pem'}",
        f"--grpc-server-key={folder / 'server.key'}",
        f"--grpc-root-cert={folder / 'ca.pem'}",
        f"--grpc-restricted-protocol=inference,model-config:key={KEY}",
    ]
    with TritonServer(demo_repository, grpc_port=0, http_port=0, metrics_port=0, extra_args=flags) as running:
        yield running


def test_mutual_tls_and_restricted_protocols(server: TritonServer, tls: Tls) -> None:
    # Triton puts this prefix before the name of the header that it was told to expect.
    headers = {"triton-grpc-protocol-key": KEY}
    credentials = Credentials(tls=tls, headers=headers)
    with Client(server.grpc_url, model="demo", credentials=credentials) as client:
        assert client.encode_texts(TEXTS).shape == (len(TEXTS), client.info.embedding_size)
    assert served_models(server.grpc_url, credentials=Credentials(tls=tls)) == ("demo",)
    with Client(server.grpc_url, model="demo", credentials=Credentials(tls=tls)) as client:
        with pytest.raises(AccessDenied, match="This protocol is restricted, expecting header.*--header") as caught:
            client.encode_texts(["a"])
    assert KEY not in str(caught.value)


def test_who_is_not_trusted(server: TritonServer, tls: Tls, tmp_path: Path) -> None:
    once = Retry(connect_attempts=1)
    stranger = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    with pytest.raises(TlsFailed, match="not signed by an authority"):
        served_models(server.grpc_url, retry=once, credentials=Credentials(tls=Tls(ca_cert=stranger)))
    for credentials in (None, Credentials(tls=Tls(ca_cert=tls.ca_cert))):
        with pytest.raises(ServerUnreachable, match="whether it wants TLS or a client's certificate"):
            served_models(server.grpc_url, retry=once, credentials=credentials)


def test_a_killed_server_is_waited_for_and_another_checkpoint_is_not_taken(
    demo_repository: Path, tmp_path: Path
) -> None:
    other = tmp_path / "repository"
    shutil.copytree(demo_repository, other)
    config = other / "demo-text" / "config.pbtxt"
    changed, count = re.subn(r'(checkpoint_sha256"[^"]*)"[0-9a-f]{64}"', rf'\1"{"b" * 64}"', config.read_text())
    assert count == 1
    config.write_text(changed)
    first = TritonServer(demo_repository, grpc_port=0, http_port=0, metrics_port=0)
    port = 0
    with first, Client(first.grpc_url, model="demo", retry=Retry.patient(60)) as client:
        port = int(first.grpc_url.rpartition(":")[2])
        whole = client.encode_texts(TEXTS)
        stream = client.iter_texts(TEXTS, batch_size=2)
        found = [next(stream)]
        os.kill(first.pid, signal.SIGKILL)
        first.stop()
        again = TritonServer(demo_repository, grpc_port=port, http_port=0, metrics_port=0)
        starting = threading.Timer(1, again.start)
        starting.start()
        try:
            found += stream
        finally:
            starting.join()
            again.stop()
        np.testing.assert_allclose(np.concatenate([block.features for block in found]), whole, atol=1e-5)
        with TritonServer(other, grpc_port=port, http_port=0, metrics_port=0):
            with pytest.raises(ModelChanged, match="checkpoint_sha256"):
                client.encode_texts(TEXTS)
