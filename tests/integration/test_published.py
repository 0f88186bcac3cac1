"""A real server polls a repository while new versions are published to it and old ones pruned."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from cnclip_builder.build import build_repository
from cnclip_builder.repository.pruning import prune_repository
from cnclip_builder.repository.publishing import publish_repository
from cnclip_client import Client, ModelChanged
from cnclip_server import TritonServer

from tests.conftest import demo_request

pytestmark = [pytest.mark.triton, pytest.mark.slow]

POLL_S = 1
SETTLE_S = 3.0


class Reader(threading.Thread):
    """Asks for a text's features without pause, and keeps the versions that answered, and what went wrong."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.client = triton.InferenceServerClient(url)
        self.versions: list[str] = []
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        text = triton.InferInput("TEXT", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([["皮卡丘".encode()]], dtype=object))
        while not self.ended.is_set():
            try:
                if not self.client.is_server_ready():  # Kubernetes would send nobody there
                    self.errors.append("the server is not ready")
                result = self.client.infer("demo-text", [text], client_timeout=30)
                self.versions.append(result.get_response().model_version)
            except triton.InferenceServerException as error:
                self.errors.append(str(error))
            time.sleep(0.01)

    def await_version(self, version: str) -> None:
        deadline = time.monotonic() + 30
        while not self.versions or self.versions[-1] != version:
            assert time.monotonic() < deadline, (self.versions[-1:], self.errors[-1:])
            time.sleep(0.1)


def test_a_reader_notices_nothing(demo_repository: Path, tmp_path: Path) -> None:
    built, destination = tmp_path / "built", str(tmp_path / "served")
    shutil.copytree(demo_repository, built)
    publish_repository(built, destination)
    flags = ("--model-control-mode=poll", f"--repository-poll-secs={POLL_S}")
    log = tmp_path / "log"
    with TritonServer(
        Path(destination), grpc_port=0, http_port=0, metrics_port=0, extra_args=flags, log_file=log
    ) as server:
        reader, client = Reader(server.grpc_url), Client(server.grpc_url, model="demo")
        reader.start()
        try:
            reader.await_version("1")
            client.encode_texts(["皮卡丘"])
            build_repository(
                demo_request(tmp_path, repository=built, artefacts=demo_repository.parent / "artefacts", version=2)
            )
            publish_repository(built, destination, settle_s=SETTLE_S)
            reader.await_version("2")
            with pytest.raises(ModelChanged, match="version 1 -> 2"):  # it keeps to the version that it began with
                client.encode_texts(["皮卡丘"])
            assert "demo-text-encoder:2" in server.models()
            assert "demo-text-encoder" in server.models()  # the older one can still be called by its number
            prune_repository(destination, keep=1, settle_s=SETTLE_S)
            time.sleep(2 * POLL_S)
            assert "demo-text-encoder" not in server.models()
        finally:
            reader.ended.set()
            reader.join()
            reader.client.close()
            client.close()
        assert reader.errors == []
        assert reader.versions == sorted(reader.versions)
        assert set(reader.versions) == {"1", "2"}
    assert "failed to load" not in log.read_text()
