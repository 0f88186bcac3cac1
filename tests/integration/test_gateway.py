"""The gateway before real tritonservers of the demo model: OpenAI's client, the page's search, and one server of two dead."""

from __future__ import annotations

import base64
import csv
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from cnclip_client import Client
from cnclip_client.extraction import extract
from cnclip_client.sources import image_source
from cnclip_server import TritonServer

from tests.conftest import DEMO
from tests.gateway.conftest import Running, run  # noqa: F401 - a fixture

pytestmark = pytest.mark.triton


def test_openais_client_and_a_search(run: Callable[..., Running], demo_server: TritonServer, tmp_path: Path) -> None:  # noqa: F811
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    pytest.importorskip("faiss", reason="the extra search is not installed")
    from cnclip_client.report import Pictures
    from cnclip_gateway._search import open_searched

    with (DEMO / "captions.tsv").open(encoding="utf-8") as file:
        captions = {row["file"]: row["caption"] for row in csv.DictReader(file, delimiter="\t")}
    images = {name: (DEMO / "images" / name).read_bytes() for name in captions}
    with Client(demo_server.grpc_url, model="demo") as client, ExitStack() as stack:
        extract(client, image_source(DEMO / "images"), tmp_path / "images.jsonl")
        searched = open_searched(tmp_path / "images.jsonl", stack)
        gateway = run(demo_server.grpc_url, searched=searched, pictures=Pictures(image_source(DEMO / "images")))
        items = [*captions.values(), *({"image": base64.b64encode(data).decode()} for data in images.values())]
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as asked:
            found = asked.embeddings.create(model="demo", input=items)
            with pytest.raises(openai.BadRequestError, match=r"input\[1\] .*image"):
                asked.embeddings.create(model="demo", input=["fine", {"image": "aGVsbG8="}])
        features = np.array([one.embedding for one in found.data], dtype=np.float32)
        expected = np.concatenate(
            [client.encode_texts(captions.values(), preprocess=True), client.encode_images(images.values())]
        )
        np.testing.assert_allclose(features, expected, atol=1e-6)
        for name, caption in captions.items():
            for answer in (
                gateway.ask("GET", f"/search?q={quote(caption)}&k=2"),
                gateway.ask("POST", "/search?k=2", images[name]),
            ):
                assert answer.json["hits"][0]["id"] == name
                assert gateway.ask("GET", answer.json["hits"][0]["thumbnail"]).status == 200


@pytest.mark.slow
def test_one_of_two_servers_dies(run: Callable[..., Running], demo_repository: Path) -> None:  # noqa: F811
    ports: dict[str, Any] = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with TritonServer(demo_repository, **ports) as stays:
        goes = TritonServer(demo_repository, **ports)
        goes.start()
        try:
            gateway = run([goes.grpc_url, stays.grpc_url])
            before = gateway.embed("皮卡丘", model="demo")
            assert before.status == 200
            os.kill(goes.pid, signal.SIGKILL)
            answers = [gateway.embed("皮卡丘", model="demo") for _ in range(20)]
        finally:
            goes.stop()
    assert [one.status for one in answers] == [200] * 20
    for one in answers:
        np.testing.assert_allclose(
            one.json["data"][0]["embedding"], before.json["data"][0]["embedding"], rtol=0, atol=1e-6
        )
