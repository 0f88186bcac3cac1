"""What the container runs, run here: its start script and its probe, on a real server; and its pinned packages."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from cnclip_server import TritonServer
from cnclip_server._binary import find_binary
from cnclip_server._command import memory_pools
from cnclip_server._host import environment

from tests.conftest import ROOT

DOCKER = ROOT / "deploy/docker"
PROBE = DOCKER / "probe.py"


def probe(url: str, seconds: float = 10, *wanted: str, **environ: str) -> subprocess.CompletedProcess[str]:
    # Alone, as in the image: nothing of this environment.
    command = [sys.executable, "-I", "-S", str(PROBE), url, str(seconds), *wanted]
    with tempfile.TemporaryDirectory() as folder:  # where it remembers, unless the test says where
        environ.setdefault("TMPDIR", folder)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


def serve_script(folder: Path, **environ: str) -> list[str]:
    """What the start script would run, by a stand-in for tritonserver."""
    stand_in = folder / "tritonserver"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "key in environment: ${CNCLIP_ADMIN_KEY-none}"\n')
    stand_in.chmod(0o755)
    command = [str(DOCKER / "serve.sh"), "--model-repository=/a folder", "--log-verbose=1"]
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_script_closes_the_apis(tmp_path: Path) -> None:
    flags = serve_script(tmp_path, CNCLIP_ADMIN_KEY="k")
    restriction = "shared-memory,trace,logging:admin-key=k"
    assert f"--grpc-restricted-protocol={restriction}" in flags
    assert f"--http-restricted-api={restriction}" in flags
    assert "--strict-readiness=false" in flags  # see tests/integration/test_published.py
    assert flags[-3:] == ["--model-repository=/a folder", "--log-verbose=1", "key in environment: none"]
    keys = {re.search("admin-key=(.*)", "\n".join(serve_script(tmp_path)))[1] for _ in range(2)}  # type: ignore[index]
    assert len(keys) == 2
    assert all(re.fullmatch("[0-9a-f]{48}", key) for key in keys)


def test_connections_end_where_servers_are_added(tmp_path: Path) -> None:
    assert "--grpc-max-connection-age" not in " ".join(serve_script(tmp_path))
    assert "--grpc-max-connection-age=120000" in serve_script(tmp_path, CNCLIP_GRPC_CONNECTION_SECONDS="120")


def test_images_stay_on_the_gpu_that_decodes_them(tmp_path: Path) -> None:
    """By the flags of `cnclip-serve`, behind which a user's own win."""
    assert "memory-pool" not in " ".join(serve_script(tmp_path))
    found = re.search(r"^ENV (\w+)=(.*)$", (DOCKER / "card.Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    flags = serve_script(tmp_path, **{found[1]: found[2]})
    ours = [flag for flag in flags if "memory-pool" in flag]
    assert flags.index("--model-repository=/a folder") > max(map(flags.index, ours))

    config = tmp_path / "models/a-image-preprocess/config.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text('backend: "python"')
    assert memory_pools(config.parents[1]) == []
    config.write_text('parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }')
    assert sorted(memory_pools(config.parents[1])) == sorted(ours)


def test_the_script_leaves_its_number_and_nothing_of_the_server_before(tmp_path: Path) -> None:
    (tmp_path / "cnclip-probe-0-8000.failures").write_text("7")
    serve_script(tmp_path)
    assert (tmp_path / "cnclip-tritonserver.pid").read_text().strip().isdigit()
    assert not list(tmp_path.glob("cnclip-probe-*"))


def test_tritonserver_knows_every_flag(tmp_path: Path) -> None:
    binary = find_binary()
    known = subprocess.run(
        [str(binary.path), "--help"], env=environment(binary), capture_output=True, text=True, check=False
    ).stderr
    files = [
        ROOT / "deploy/compose/compose.yaml",
        ROOT / "deploy/kserve/inference-service.yaml",
        *(file for file in (ROOT / "deploy/kubernetes").rglob("*.yaml") if file.name != "gateway.yaml"),
    ]
    arguments = serve_script(tmp_path, CNCLIP_GRPC_CONNECTION_SECONDS="1", CNCLIP_DECODES_ON_GPU="1")[:-1]
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            arguments += flags_in(document)
    flags = {argument.split("=")[0] for argument in arguments}
    assert {"--model-repository", "--http-restricted-api", "--repository-poll-secs", "--grpc-port"} <= flags
    for flag in flags:
        assert re.search(rf"^\s+{flag}\b(?!-)", known, re.MULTILINE), f"tritonserver has no {flag}"


def flags_in(value: Any) -> list[str]:
    """The flags of the containers of a manifest; Prometheus has flags of its own."""
    if isinstance(value, dict):
        return [flag for key, each in value.items() if key != "prometheus" for flag in flags_in(each)]
    if isinstance(value, list):
        return [flag for each in value for flag in flags_in(each)]
    if isinstance(value, str) and "\n" in value:  # a patch
        return re.findall(r"--[a-z-]+=\S+", value)
    return [value] if isinstance(value, str) and value.startswith("--") else []


@pytest.mark.triton
def test_the_script_serves(demo_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded tritonserver, by the script: its flags work together, the probe agrees, the APIs are closed.

    It polls, as with components/object-store, and starts while a new name is being uploaded.
    """
    from cnclip_server._backends import assemble_backends

    repository = tmp_path / "repository"
    shutil.copytree(demo_repository, repository)
    shutil.copytree(repository / "demo-text-encoder/1", repository / "new-text-encoder/1")
    binary = find_binary()
    backends = tmp_path / "backends"
    backends.mkdir()
    assemble_backends(binary, backends)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tritonserver").symlink_to(binary.path)
    env = {**environment(binary), "TMPDIR": str(tmp_path), "CNCLIP_GRPC_CONNECTION_SECONDS": "1"}
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    ports = [19480 + 3 * (os.getpid() % 500) + index for index in range(3)]
    command = [
        str(DOCKER / "serve.sh"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        *("--model-control-mode=poll", "--repository-poll-secs=1", "--exit-on-error=false"),
        *(f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1"),
    ]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{ports[0]}"
        deadline = time.monotonic() + 120
        while (result := probe(url, 10, "loaded")).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, result.stderr
            time.sleep(0.5)
        with triton.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                client.get_log_settings()
            # The connection ends a few times meanwhile, and no request with it.
            text = triton.InferInput("TEXT", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[b"a"]], dtype=object))
            ended = time.monotonic() + 4
            while time.monotonic() < ended:
                client.infer("demo-text", [text])
        assert int((tmp_path / "cnclip-tritonserver.pid").read_text()) == server.pid
    finally:
        server.terminate()
        server.wait(40)


@pytest.mark.triton
@pytest.mark.parametrize("model", ["demo-image-preprocess", pytest.param("demo-text-tokenize", marks=pytest.mark.slow)])
def test_the_probe_finds_a_dead_model(demo_repository: Path, model: str) -> None:
    """While Triton goes on to call itself ready."""
    with TritonServer(demo_repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        url = f"http://{server.http_url}"
        assert probe(url).returncode == 0
        stubs = subprocess.run(["pgrep", "--parent", str(server.pid), "--full", model], capture_output=True, text=True)
        for pid in stubs.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        assert stubs.stdout
        time.sleep(1)
        assert server.models()
        result = probe(url)
        assert result.returncode == 1
        assert model in result.stderr
        # What the alert TritonModelFails goes by; counted behind the answer.
        counted = f'_failure{{model="{model}",reason="BACKEND",version="1"}} 1\n'
        metrics, deadline = "", time.monotonic() + 30
        while counted not in metrics:
            assert time.monotonic() < deadline, metrics
            with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
                metrics = response.read().decode()


HANGS = """
import threading
import triton_python_backend_utils as pb_utils
lock = threading.Lock()
class TritonPythonModel:
    def execute(self, requests):
        if b"hang" in [request.inputs()[0].as_numpy().reshape(-1)[0] for request in requests]:
            lock.acquire(), lock.acquire()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


@pytest.mark.triton
def test_the_probe_finds_a_frozen_model_where_it_must_not_list_any(tmp_path: Path) -> None:
    """The server is started as docs/security.md advises, and says that it is ready and alive."""
    version = tmp_path / "repository" / "a-text-tokenize" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(HANGS)
    (version.parent / "config.pbtxt").write_text(
        'name: "a-text-tokenize"\nbackend: "python"\nmax_batch_size: 4\n'
        'input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_STRING dims: [ 1 ] } ]\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\ndynamic_batching { }\n"
    )
    flags = ["--http-restricted-api=model-repository:key=value"]
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with TritonServer(tmp_path / "repository", extra_args=flags, **ports) as server:
        environ = {
            "CNCLIP_METRICS_URL": f"http://{server.metrics_url}/metrics",
            "CNCLIP_STALL_SECONDS": "1.5",
            "TMPDIR": str(tmp_path),
        }
        url = f"http://{server.http_url}"
        for _ in range(4):
            assert probe(url, seconds=1, **environ).returncode == 0
        text = triton.InferInput("TEXT", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"hang"]], dtype=object))
        with triton.InferenceServerClient(server.grpc_url) as client:
            client.async_infer("a-text-tokenize", [text], callback=lambda result, error: None)
            time.sleep(0.2)
            results = [probe(url, seconds=1, **environ) for _ in range(7)]
        assert [result.returncode for result in results[:2]] == [0, 0]
        assert results[-1].returncode == 1
        assert "requests wait for a-text-tokenize/1 and none is executed" in results[-1].stderr
        server.stop(timeout_s=0.1)


class Slow(http.server.BaseHTTPRequestHandler):
    """A server that is alive and busy: its models never answer."""

    lives = True
    listed = b'[{"name": "a-text-tokenize", "version": "1", "state": "READY"}]'
    executed = 0
    executes = True

    def do_GET(self) -> None:
        type(self).executed += self.executes
        metrics = (
            'nv_inference_pending_request_count{model="a-text-tokenize",version="1"} 3\n'
            f'nv_inference_exec_count{{model="a-text-tokenize",version="1"}} {self.executed}\n'
        )
        self.answer(metrics.encode() if self.path == "/metrics" else b"") if self.lives else time.sleep(5)

    def do_POST(self) -> None:
        if self.path == "/v2/repository/index":
            self.answer(self.listed)
        else:
            time.sleep(3)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[tuple[str, type[Slow]]]:
    handler = type("Handler", (Slow,), {"lives": True})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_probe_spares_a_busy_server(slow: tuple[str, type[Slow]], tmp_path: Path) -> None:
    environ = {"CNCLIP_METRICS_URL": f"{slow[0]}/metrics", "CNCLIP_STALL_SECONDS": "0.5", "TMPDIR": str(tmp_path)}
    assert [probe(slow[0], seconds=1, **environ).returncode for _ in range(4)] == [0] * 4
    slow[1].executes = False
    assert [probe(slow[0], seconds=1, **environ).returncode for _ in range(4)][-1] == 1


@pytest.mark.parametrize("told", ["abc", "-1", "nan", "1h"])
def test_a_variable_that_says_no_number_ends_no_server(slow: tuple[str, type[Slow]], tmp_path: Path, told: str) -> None:
    slow[1].executes = False
    environ = {"CNCLIP_METRICS_URL": f"{slow[0]}/metrics", "CNCLIP_STALL_SECONDS": told, "TMPDIR": str(tmp_path)}
    results = [probe(slow[0], seconds=0.2, **environ) for _ in range(4)]
    assert [result.returncode for result in results] == [0] * 4
    assert f"CNCLIP_STALL_SECONDS is {told!r}, no number of seconds: 90.0 count" in results[0].stderr


def test_a_start_wants_a_model(slow: tuple[str, type[Slow]]) -> None:
    """For servers that go on without what they cannot load."""
    url, handler = slow
    assert probe(url, 1, "loaded").returncode == 0
    handler.listed = b'[{"name": "a-text-tokenize", "version": "1", "state": "UNAVAILABLE"}]'
    assert probe(url, 1).returncode == 0
    result = probe(url, 1, "loaded")
    assert result.returncode == 1
    assert "no model is ready" in result.stderr


def test_the_probe_tells_no_password() -> None:
    result = probe("http://user:s3cret@127.0.0.1:9", http_proxy="http://user:s3cret@127.0.0.1:9")
    assert result.returncode == 1
    assert "127.0.0.1:9" in result.stderr
    assert "s3cret" not in result.stderr + result.stdout


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_probe_ends_a_sick_server_where_nobody_else_does(
    slow: tuple[str, type[Slow]], tmp_path: Path, stubborn: bool
) -> None:
    url, _ = slow
    script = (
        "import signal, time; "
        + "signal.signal(signal.SIGTERM, signal.SIG_IGN); " * stubborn
        + "print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        (tmp_path / "cnclip-tritonserver.pid").write_text(f"{server.pid}\n")
        told = {"CNCLIP_PROBE_RESTARTS": "1", "TMPDIR": str(tmp_path)}

        def sick() -> int | None:
            assert probe("http://127.0.0.1:9", **told).returncode == 1
            time.sleep(0.2)
            return server.poll()

        def well() -> None:
            # Nobody answers at port 9: what a success there would have left behind.
            (tmp_path / f"cnclip-probe-{os.getuid()}-9.failures").write_text("0")

        assert [sick() for _ in range(3)] == [None] * 3  # it has not been up yet
        assert probe(url, seconds=1, **told).returncode == 0
        port = url.rpartition(":")[2]
        assert (tmp_path / f"cnclip-probe-{os.getuid()}-{port}.failures").read_text() == "0"
        well()
        assert sick() is None
        well()
        assert sick() is None
        ended = sick()
        if stubborn:
            assert ended is None
            ended = sick()
        assert ended == (-signal.SIGKILL if stubborn else -signal.SIGTERM)
        server.kill()


def test_the_probe_finds_a_server_that_hangs(slow: tuple[str, type[Slow]]) -> None:
    slow[1].lives = False
    assert probe(slow[0], seconds=1).returncode == 1


def test_the_probe_finds_no_server() -> None:
    result = probe("http://127.0.0.1:9")
    assert result.returncode == 1
    assert "refused" in result.stderr


@pytest.mark.slow
def test_the_python_models_work_with_the_pins(tmp_path: Path, demo_repository: Path) -> None:
    """In a clean environment of the image's Python version, with nothing but the requirements."""
    python = image_python()
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    inside = tmp_path / "venv/bin/python"
    requirements = str(DOCKER / "requirements.txt")
    install = [str(inside), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", requirements]
    subprocess.run(install, check=True)
    resizes = "not installed"
    if shutil.which("cc"):
        # What `make wheel` does.
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "CNCLIP_NATIVE": "require"})
        (wheel,) = tmp_path.glob("*.whl")
        subprocess.run([str(inside), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
        resizes = "as Pillow"
    for model, code in {
        "demo-image-preprocess": "import sys; from cnclip_pixels import decode_pixels as f, resizer; "
        f"assert f(open(sys.argv[1], 'rb').read(), 32).shape == (32, 32, 3); assert {resizes!r} in resizer(), resizer()",
        "demo-text-tokenize": "from pathlib import Path; from cnclip_token_ids import TokenIds; "
        "assert len(TokenIds(Path('vocab.txt'), 52).encode('皮卡丘 pikachu')) > 4; import cnclip_bad_rows, cnclip_refusal_log",
    }.items():
        image = next((ROOT / "examples/demo").rglob("*.jpg"), None) or next((ROOT / "examples/demo").rglob("*.png"))
        subprocess.run([str(inside), "-c", code, str(image)], cwd=demo_repository / model / "1", check=True)


def test_what_decodes_on_a_gpu_is_pinned_as_it_was_tested() -> None:
    pins = {line for line in (DOCKER / "card-requirements.txt").read_text().splitlines() if "==" in line}
    known = {line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert len(pins) == 6
    assert pins <= known


@pytest.mark.slow
def test_the_image_for_a_gpu_compiles_its_kernels(tmp_path: Path) -> None:
    """What its Dockerfile runs, in a clean environment of the image's Python version; no GPU is needed for it."""
    subprocess.run([image_python(), "-m", "venv", str(tmp_path / "venv")], check=True)
    inside = tmp_path / "venv/bin/python"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    pins = [word for name in ("requirements", "card-requirements") for word in ("-r", str(DOCKER / f"{name}.txt"))]
    subprocess.run([str(inside), "-m", "pip", "install", "--quiet", "--no-deps", *pins, str(wheel)], check=True)
    found = re.search(r"python3 -c '(.*)'", (DOCKER / "card.Dockerfile").read_text())
    assert found is not None
    subprocess.run([str(inside), "-c", found[1]], check=True, cwd=tmp_path)


def image_python() -> str:
    """The version that the Dockerfile insists on."""
    version = re.search(r"== \((\d+), (\d+)\)", (DOCKER / "Dockerfile").read_text())
    assert version
    name = f"python{version[1]}.{version[2]}"
    candidates = [
        shutil.which(name),
        *map(str, Path.home().glob(f".pyenv/versions/{version[1]}.{version[2]}.*/bin/{name}")),
    ]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"{name} is not installed")
