"""What is found wrong with a server that calls itself ready."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from cnclip_server import ServerError, TritonServer, _health, _watch
from cnclip_server._cli import _serve
from cnclip_server._watch import Counts, ModelWatch, parse_counts
from tritonclient.utils import InferenceServerException

# 7 waits for a lock that nobody gives back, 8 works without end.
PYTHON_MODEL = """
import threading
import triton_python_backend_utils as pb_utils
lock = threading.Lock()
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            value = request.inputs()[0].as_numpy().reshape(-1)[0]
            if value == 7:
                lock.acquire(), lock.acquire()
            while value == 8:
                pass
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""
KINDS = ("dies", "fails", "hangs", "stops", "well", "works")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> ModelWatch:
    """Of a process that has no stubs, as a server whose backends are all C++."""
    return ModelWatch(os.getpid(), Clock())


def hear(watch: ModelWatch, seconds: float, **counts: int) -> dict[str, str]:
    watch._clock.now += seconds  # type: ignore[attr-defined]
    watch.hear({("m", "1"): Counts(**counts)}, (), lambda model, version: False)
    return watch.look()


def test_metrics_are_read_as_triton_writes_them() -> None:
    text = """# HELP nv_inference_exec_count Number of model executions performed
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="a",version="1"} 3
nv_inference_exec_count{gpu_uuid="GPU-1",model="b",version="2"} 1e+06
nv_inference_pending_request_count{model="a",version="1"} 2
nv_inference_request_failure{model="a",reason="OTHER",version="1"} 9
nv_inference_request_failure{model="a",reason="BACKEND",version="1"} 4
nv_cpu_utilization 0.5
"""
    assert parse_counts(text) == {("a", "1"): Counts(2, 3, 4), ("b", "2"): Counts(0, 1000000, 0)}


def test_work_that_goes_on_is_no_trouble(watch: ModelWatch) -> None:
    assert [hear(watch, 500, pending=9, executed=batch) for batch in range(10)] == [{}] * 10


def test_an_idle_model_is_no_trouble(watch: ModelWatch) -> None:
    assert [hear(watch, 500, executed=3) for _ in range(10)] == [{}] * 10
    assert hear(watch, 1, executed=3, pending=1) == {}


def test_a_batch_may_take_long_where_no_process_can_be_looked_at(watch: ModelWatch) -> None:
    hear(watch, 1, executed=3)
    assert [hear(watch, 60, executed=3, pending=1) for _ in range(9)] == [{}] * 9
    assert "none has been executed for 600 s" in hear(watch, 60, executed=3, pending=1)["m"]
    assert hear(watch, 1, executed=4, pending=1) == {}


def test_failures_alone_are_a_trouble_and_single_ones_are_not(watch: ModelWatch) -> None:
    hear(watch, 1)
    assert [hear(watch, 100, failed=failed) for failed in range(20)] == [{}] * 20
    assert [hear(watch, 5, failed=failed, executed=failed) for failed in range(20, 30)] == [{}] * 10
    assert [hear(watch, 5, failed=30 + more, executed=29) for more in range(2)] == [{}] * 2
    assert hear(watch, 5, failed=32, executed=29) == {"m": "m fails every request"}


def test_requests_without_sense_are_no_trouble(watch: ModelWatch) -> None:
    """As token ids that no vocabulary has, of which the C++ backend counts no batch as executed."""
    asked: list[tuple[str, str]] = []

    def answers(model: str, version: str) -> bool:
        asked.append((model, version))
        return well

    well = True
    for failed in range(20):
        watch._clock.now += 5  # type: ignore[attr-defined]
        watch.hear({("m", "1"): Counts(failed=failed)}, (), answers)
        assert watch.look() == {}
    assert set(asked) == {("m", "1")}
    # Seldom, and not at every look.
    assert len(asked) < 7
    well = False
    for failed in range(20, 24):
        watch._clock.now += 5  # type: ignore[attr-defined]
        watch.hear({("m", "1"): Counts(failed=failed)}, (), answers)
    assert watch.look() == {"m": "m fails every request"}


def test_not_ready_once_is_a_reload(watch: ModelWatch) -> None:
    def ask(seconds: float, *not_ready: str) -> dict[str, str]:
        watch._clock.now += seconds  # type: ignore[attr-defined]
        watch.hear({}, not_ready, lambda model, version: False)
        return watch.look()

    assert ask(3, "m") == {}
    assert ask(3) == {}
    assert [ask(3, "m") for _ in range(3)] == [{}] * 3
    assert ask(3, "m") == {"m": "m lost a process"}


@pytest.fixture(scope="module")
def server(
    make_repository: Any, nets: Any, tmp_path_factory: pytest.TempPathFactory, xy: str
) -> Iterator[TritonServer]:
    repository = make_repository(tmp_path_factory.mktemp("watched") / "repository")
    for kind in KINDS:
        (repository.add(kind, None, xy, backend="python") / "model.py").write_text(PYTHON_MODEL)
    with TritonServer(repository.path, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running


def send(url: str, model: str, value: float, timeout_s: float = 60) -> bool:
    x = grpc.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.array([[value]], np.float32))
    try:
        with grpc.InferenceServerClient(url) as client:
            client.infer(model, [x], client_timeout=timeout_s)
    except InferenceServerException:
        return False
    return True


def stub_of(server: TritonServer, model: str) -> int:
    command = ["pgrep", "--parent", str(server.pid), "--full", f"/{model}/1/"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.triton
def test_a_real_server_is_asked_for_what_its_models_can_do(server: TritonServer) -> None:
    assert server._settings.api().infers("well", "1", 10)
    assert not server._settings.api().infers("nobody", "1", 10)


@pytest.mark.triton
def test_a_real_server_with_models_that_died_stopped_and_hang(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(_health, "_ASK_INTERVAL_S", 0.2)
    for limit, seconds in (("_STOPPED_S", 1), ("_FAILING_S", 1), ("_IDLE_S", 2), ("_WORKING_S", 60)):
        monkeypatch.setattr(_watch, limit, seconds)
    assert all(send(server.grpc_url, kind, 1) for kind in KINDS)
    assert server.troubles() == []
    os.kill(stub_of(server, "dies"), signal.SIGKILL)
    for kind in ("stops", "fails"):
        os.kill(stub_of(server, kind), signal.SIGSTOP)
    monkeypatch.setattr(_watch, "_DEAD_S", 0.1)
    # A request that hangs is under way; only what comes after it waits.
    for kind, value in (("hangs", 7), ("works", 8)):
        for each in (value, 1, 1):
            threading.Thread(target=send, args=(server.grpc_url, kind, each, 15), daemon=True).start()
            time.sleep(0.1)

    def found() -> str:
        assert send(server.grpc_url, "well", 1)
        send(server.grpc_url, "fails", 1, timeout_s=3)
        return " ".join(server.troubles())

    assert eventually(lambda: all(f"{kind}" in found() for kind in KINDS[:4]), timeout_s=30)
    said = found()
    assert "a process of dies died, and Triton does not replace it" in said
    assert "a process of stops is stopped" in said
    assert "requests wait for hangs and none has been executed for" in said
    assert "well" not in said
    assert "works" not in said
    with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready", timeout=5) as response:
        assert response.status == 200


@pytest.mark.triton
def test_a_server_that_is_frozen_itself(repository: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    for name, seconds in (("_ASK_INTERVAL_S", 0.2), ("_ASK_TIMEOUT_S", 0.3), ("_SILENCE_S", 1.0)):
        monkeypatch.setattr(_health, name, seconds)
    with TritonServer(repository.path, grpc_port=0, http_port=0, metrics_port=0) as server:
        assert server.troubles() == []
        os.kill(server.pid, signal.SIGSTOP)
        assert eventually(lambda: "tritonserver has answered nothing for" in " ".join(server.troubles()))
        server.stop(timeout_s=0.1)


class FakeServer:
    """One that is in trouble at every look, and ends after so many."""

    grpc_url = http_url = metrics_url = "nowhere"

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.restarts = 0

    def models(self) -> list[str]:
        return []

    def wait(self, timeout_s: float) -> int | None:
        time.sleep(0.02)
        self.looks -= 1
        return None if self.looks >= 0 else 1

    def troubles(self) -> list[str]:
        return ["m is ill"]

    def restart(self) -> None:
        self.restarts += 1


def test_restarts_count_within_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    often: Any = FakeServer(looks=50)
    with pytest.raises(ServerError, match=r"m is ill; gave up after 3 restarts \(--max-restarts\) within 60 s"):
        _serve(often, 3, 60, None)
    assert often.restarts == 3
    seldom: Any = FakeServer(looks=50)
    with pytest.raises(ServerError, match="ended by itself"):
        _serve(seldom, 3, 0.03, None)
    assert seldom.restarts == 50
    assert "restarting the server (1 of 3)" in capsys.readouterr().err
