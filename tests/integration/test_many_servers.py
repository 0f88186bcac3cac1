"""Two real tritonservers of one model: one is killed in mid-job, and comes back, and every row is right."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import Client, Retry
from cnclip_client.extraction import ExtractOptions, extract
from cnclip_client.sources import text_source
from cnclip_server import TritonServer

pytestmark = [pytest.mark.triton, pytest.mark.slow]

PORTS: dict[str, Any] = {"http_port": 0, "metrics_port": 0}
TEXTS = 6000


def requests_of(server: TritonServer) -> int:
    """How many requests the server's text ensemble has answered."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(server.grpc_url) as asked:
        return int(asked.get_inference_statistics("demo-text").model_stats[0].inference_stats.success.count)


def test_one_of_two_servers_is_killed_and_comes_back(demo_repository: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"图片中间有{row}个圆形\n" for row in range(TEXTS)), encoding="utf-8")
    options = ExtractOptions(batch_size=4, checkpoint_s=0.2)
    with TritonServer(demo_repository, grpc_port=0, **PORTS) as stays:
        goes = TritonServer(demo_repository, grpc_port=0, **PORTS)
        goes.start()
        url = goes.grpc_url
        killed, back = threading.Event(), threading.Event()

        def report(items: int, failures: int) -> None:
            if items >= TEXTS // 6 and not killed.is_set():
                killed.set()
                os.kill(goes.pid, signal.SIGKILL)
            if items >= TEXTS // 3:
                # The rest takes as long as the other one needs to be back.
                back.wait(60)

        done: list[Any] = []

        def run() -> None:
            with Client([stays.grpc_url, url], model="demo", retry=Retry.patient(120)) as client:
                done.append(extract(client, text_source(texts), tmp_path / "out.npy", options, report=report))

        job = threading.Thread(target=run)
        job.start()
        assert killed.wait(60)
        goes.stop()
        with TritonServer(demo_repository, grpc_port=int(url.rpartition(":")[2]), **PORTS) as again:
            back.set()
            job.join(120)
            assert [(one.items, one.failures) for one in done] == [(TEXTS, 0)]
            assert requests_of(again) > 10
            with Client(stays.grpc_url, model="demo") as client:
                expected = client.encode_texts(texts.read_text(encoding="utf-8").splitlines())
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
