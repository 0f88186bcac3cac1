"""Clients that leave: cancelled, killed, closed, by the thousand. The server forgets them, and answers the next one."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cnclip_client import Client, Limits
from cnclip_server import TritonServer

pytestmark = pytest.mark.triton

MODEL = "demo"
# Sends texts for ever, many requests at a time, until it is killed.
ENDLESS = f"""
import itertools, sys
from cnclip_client import Client, Limits
with Client(sys.argv[1], model={MODEL!r}) as client:
    for number, block in enumerate(client.iter_texts((f"text {{n}}" for n in itertools.count()), batch_size=1)):
        if number == 20:
            print("going", flush=True)
"""


def pending(server: TritonServer) -> int:
    """Requests that wait in the server, of all its models."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://{server.metrics_url}/metrics", timeout=10
    ) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("nv_inference_pending_request_count{")]
    assert counts, "the server does not count what is pending"
    return sum(int(float(line.rpartition(" ")[2])) for line in counts)


def require_idle(server: TritonServer) -> None:
    until = time.monotonic() + 20
    while found := pending(server):
        assert time.monotonic() < until, f"{found} requests are pending for nobody"
        time.sleep(0.1)


def test_cancelled_requests_and_killed_clients_leave_nothing(demo_server: TritonServer, tmp_path: Path) -> None:
    require_idle(demo_server)
    with Client(demo_server.grpc_url, model=MODEL, limits=Limits(in_flight=64)) as client:
        before = client.encode_texts(["皮卡丘"])
        cancelled = 0
        while cancelled < 2000:
            stream = client.iter_texts((f"text {number}" for number in itertools.count()), batch_size=1)
            next(stream)
            # What is under way now ends without an answer that anyone reads.
            cancelled += sum(endpoint.under_way for endpoint in client._endpoints.inside())
            stream.close()  # type: ignore[attr-defined]
    for _ in range(3):
        command = [sys.executable, "-c", ENDLESS, demo_server.grpc_url]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) for _ in range(2)]
        for one in clients:
            assert one.stdout is not None
            assert one.stdout.readline() == b"going\n"
            one.kill()
        for one in clients:
            one.wait()
            one.stdout.close()  # type: ignore[union-attr]
    require_idle(demo_server)
    with Client(demo_server.grpc_url, model=MODEL) as client:
        assert (client.encode_texts(["皮卡丘"]) == before).all()
