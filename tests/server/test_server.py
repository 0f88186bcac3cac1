"""Starting and stopping a real tritonserver, and what is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from cnclip_server import PortInUse, RepositoryError, ServerError, StartupFailed, TritonServer
from cnclip_server._cli import app
from cnclip_server._ports import Ports
from typer.testing import CliRunner

FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]

PYTHON_MODEL = """
import triton_python_backend_utils as pb_utils
{initialize}
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


@pytest.fixture
def leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What servers of this test have left: temporary folders, and shared memory."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = set(Path("/dev/shm").iterdir())

    def find() -> list[str]:
        # Other tests of this machine may run servers of their own: only names that this process tree made count.
        shared = [path.name for path in set(Path("/dev/shm").iterdir()) - before if f"_{os.getpid()}_" in path.name]
        return [*shared, *(path.name for path in temporary.iterdir())]

    return find


def _server(repository: Path, **options: Any) -> TritonServer:
    return TritonServer(repository, **{"grpc_port": 0, "http_port": 0, "metrics_port": 0, **options})


def _infer(url: str, model: str = "echo") -> Any:
    client = triton.InferenceServerClient(url)
    try:
        x = triton.InferInput("x", [1, 2], "FP32")
        x.set_data_from_numpy(np.array([[1, 2]], np.float32))
        return client.infer(model, [x]).as_numpy("y").tolist()
    finally:
        client.close()


@pytest.mark.triton
def test_serves_and_leaves_nothing(repository: Any, leftovers: Any, processes_of: Any, nets: Any, xy: str) -> None:
    (repository.add("python", None, xy, backend="python") / "model.py").write_text(PYTHON_MODEL.format(initialize=""))
    with _server(repository.path) as server:
        _require_loopback(server)
        assert server.models() == ["echo", "python"]
        assert _infer(server.grpc_url) == [[1, 2]]
        assert _infer(server.grpc_url, "python") == [[1, 2]]
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=5) as response:
            assert b"nv_inference_count" in response.read()
        assert server.wait(0.01) is None
        pid = server.pid
        assert len(processes_of(pid)) == 3
        assert leftovers() != []
        log_path = server.log_path
        assert "echo" in log_path.read_text()
    assert processes_of(pid) == []
    assert leftovers() == []
    with pytest.raises(ServerError, match="does not run"):
        _ = server.pid
    server.stop()


def _listening() -> set[tuple[str, int]]:
    """Every (address in the kernel's hexadecimal, port) that this machine listens on."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":  # TCP_LISTEN
                address, _, port = local.partition(":")
                found.add((address, int(port, 16)))
    return found


def _require_loopback(server: TritonServer) -> None:
    """No other machine reaches it."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same as an IPv6 address
    listening = _listening()
    ports = {int(url.rpartition(":")[2]) for url in (server.grpc_url, server.http_url, server.metrics_url)}
    addresses = {port: {address for address, other in listening if other == port} for port in ports}
    assert len(addresses) == 3
    for port, found in addresses.items():
        assert found, f"nothing listens on {port}"
        assert found <= loopback


@pytest.mark.triton
def test_starts_again_after_a_stop(repository: Any, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    server = _server(repository.path, log_file=log)
    server.start()
    try:
        with pytest.raises(ServerError, match=r"runs already \(process \d+\); stop\(\) it first"):
            server.start()
    finally:
        server.stop()
    assert "successfully loaded 'echo'" in log.read_text()
    with server:
        assert _infer(server.grpc_url) == [[1, 2]]


@pytest.mark.triton
def test_repositories_of_any_name(make_repository: Any, nets: Any, xy: str, tmp_path: Path) -> None:
    """Triton's Python backend starts its stubs through a shell, with the repository's path unquoted."""
    repository = make_repository(tmp_path / "it's a 仓库 in $HOME")
    (repository.add("python", None, xy, backend="python") / "model.py").write_text(PYTHON_MODEL.format(initialize=""))
    with _server(repository.path) as server:
        assert _infer(server.grpc_url, "python") == [[1, 2]]


@pytest.mark.triton
def test_a_model_that_fails_to_load(make_repository: Any, nets: Any, xy: str, tmp_path: Path, leftovers: Any) -> None:
    repository = make_repository(tmp_path / "two words")
    repository.add("echo", nets.identity(), xy)
    repository.add("broken", nets.identity([1, "L"]), xy)
    repository.add("absent", None, xy)
    script = PYTHON_MODEL.format(initialize="import no_such_module")
    (repository.add("python", None, xy, backend="python") / "model.py").write_text(script)
    with pytest.raises(StartupFailed) as raised:
        _server(repository.path).start()
    assert "\n" not in str(raised.value)
    assert "model 'broken' failed to load: model 'broken', tensor 'x': for the model to support" in raised.value.reason
    assert f"unable to find '{repository.path}/absent/1/model.onnx'" in raised.value.reason
    assert re.search(r"model 'python' failed to load: .*No module named 'no_such_module'", raised.value.reason)
    assert "failed to load all models" in raised.value.log_tail
    assert leftovers() == []


@pytest.mark.triton
@pytest.mark.parametrize("when", ["at its start", "as it loads"])
def test_a_process_that_dies_before_its_model_is_loaded(
    repository: Any, xy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leftovers: Any, when: str
) -> None:
    """Of a stub that never says a word Triton waits for ever."""
    if when == "at its start":
        stub = tmp_path / "stub"
        stub.write_text("#!/bin/sh\nexit 3\n")
        stub.chmod(0o755)
        monkeypatch.setattr("cnclip_server._backends._stub", lambda binary: stub)
    else:
        script = PYTHON_MODEL.format(initialize="import os; os.kill(os.getpid(), 9)")
        (repository.add("python", None, xy, backend="python") / "model.py").write_text(script)
    with pytest.raises(StartupFailed, match=r"a process of .* died|model .python. failed to load"):
        _server(repository.path, startup_timeout_s=120).start()
    assert leftovers() == []


@pytest.mark.triton
def test_gpu_instances_without_a_gpu(repository: Any, nets: Any, xy: str) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has an NVIDIA GPU; the refusal of KIND_GPU needs one without")
    repository.add("gpu", nets.identity(), "instance_group [ { count: 1 kind: KIND_GPU } ]\n" + xy)
    repository.add("third", nets.identity(), "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 3 ] } ]\n" + xy)
    with pytest.raises(StartupFailed, match="gpu.*KIND_GPU") as raised:
        _server(repository.path).start()
    assert "third specifies invalid or unsupported gpu id 3" in raised.value.reason
    assert "; no such GPU is there: see what nvidia-smi lists, and what CUDA_VISIBLE_DEVICES " in raised.value.reason


@pytest.mark.triton
def test_an_unreadable_configuration(repository: Any, nets: Any) -> None:
    repository.add("odd", nets.identity(), "max_bat_size: 3")
    with pytest.raises(StartupFailed, match=r'directory .odd.*no field named "max_bat_size"'):
        _server(repository.path).start()


@pytest.mark.triton
def test_an_unknown_flag_and_keys_that_are_in_no_message(
    repository: Any, leftovers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"), pytest.raises(StartupFailed, match="no-such-flag") as raised:
        _server(repository.path, extra_args=["--no-such-flag"], admin_key="s3cret").start()
    assert "--http-restricted-api=shared-memory,trace,logging:admin-key=***" in caplog.text
    own = ["--http-restricted-api=nonsense-key=s3cret", "--grpc-restricted-protocol", "trace:x=s3cret"]
    with caplog.at_level("DEBUG"), pytest.raises(StartupFailed, match="format") as refused:
        _server(repository.path, extra_args=own, admin_key="s3cret").start()
    said = [error.value.reason + error.value.log_tail for error in (raised, refused)]
    assert "s3cret" not in "".join(said) + caplog.text
    assert leftovers() == []


@pytest.mark.triton
def test_not_ready_in_time(repository: Any, leftovers: Any, xy: str) -> None:
    script = PYTHON_MODEL.format(initialize="import time; time.sleep(60)")
    (repository.add("slow", None, xy, backend="python") / "model.py").write_text(script)
    with pytest.raises(StartupFailed, match=r"not ready within 1 s.*give it longer"):
        _server(repository.path, startup_timeout_s=1).start()
    assert leftovers() == []


@pytest.mark.triton
def test_an_interrupt_while_starting(repository: Any, leftovers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    server = _server(repository.path)
    monkeypatch.setattr("cnclip_server._api.Api.is_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert leftovers() == []


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"nowhere does not exist; give a folder written by `cnclip-build`"):
        _server(tmp_path / "nowhere").start()
    (tmp_path / "empty" / "model").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="empty holds no model"):
        _server(tmp_path / "empty").start()


@pytest.mark.parametrize("name", ["my demo-text", "(b)", "a&b", "示例"])
def test_a_model_whose_name_a_shell_would_read(tmp_path: Path, name: str) -> None:
    """Triton dies or hangs as it loads one: it starts Python models' processes by `bash -c`, with names unquoted."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.pbtxt").touch()
    with pytest.raises(RepositoryError, match=rf"^Triton can't serve a model named {re.escape(repr(name))}: .* --name"):
        _server(tmp_path).start()


def test_paths_may_be_strings(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="empty does not exist"):
        TritonServer(str(tmp_path / "empty"), binary="tritonserver", log_file=str(tmp_path / "log")).start()


@pytest.mark.parametrize(("option", "flag"), [("grpc_port", "--grpc-port"), ("http_port", "--http-port")])
def test_a_port_in_use(repository: Any, option: str, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            PortInUse, match=f"port {port} on 127.0.0.1 is in use; choose another with {flag}"
        ) as raised:
            _server(repository.path, **{option: port}).start()
    assert (raised.value.port, raised.value.flag) == (port, flag)


def test_ports_are_held_until_the_server_has_them() -> None:
    with Ports(0, 0, 0).held("127.0.0.1") as ports:
        assert len({ports.grpc, ports.http, ports.metrics}) == 3
        for port in (ports.grpc, ports.http, ports.metrics):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as tritonserver does
                server.bind(("127.0.0.1", port))
                server.listen()
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports.grpc))


@pytest.mark.triton
def test_a_port_taken_meanwhile(repository: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = _server(repository.path, metrics_port=port)
        monkeypatch.setattr(
            "cnclip_server._ports.Ports.held", lambda ports, host: contextlib.nullcontext(type(ports)(*free, port))
        )
        with socket.socket() as one, socket.socket() as other:
            for free_socket in (one, other):
                free_socket.bind(("127.0.0.1", 0))
            free = [free_socket.getsockname()[1] for free_socket in (one, other)]
        with pytest.raises(PortInUse, match=f"{port}.*--metrics-port"):
            server.start()


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 0), ("127.0.0.1", 70000), ("", 0), ("::1", 0)])
def test_addresses_that_are_not_ours(repository: Any, host: str, port: int) -> None:
    with pytest.raises(ServerError, match=r"check --host and --grpc-port|give --grpc-port a number|an IPv4 address"):
        _server(repository.path, host=host, grpc_port=port).start()


def test_a_port_of_roots(repository: Any, port_of_root: int) -> None:
    with pytest.raises(ServerError, match=r"Permission denied\); give --http-port a number from 1024 on"):
        _server(repository.path, http_port=port_of_root).start()


def test_a_log_that_cannot_be_written(repository: Any, tmp_path: Path, leftovers: Any) -> None:
    with pytest.raises(ServerError, match="cannot write the log"):
        _server(repository.path, log_file=tmp_path / "missing" / "log").start()
    assert leftovers() == []


def binary_with_its_own_backend(tmp_path: Path, script: str) -> Path:
    """A tritonserver as in NVIDIA's container, beside which a C++ onnxruntime backend lies: a script instead of it."""
    home = tmp_path / "opt"
    (home / "bin").mkdir(parents=True)
    (home / "backends" / "onnxruntime").mkdir(parents=True)
    (home / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    binary = home / "bin" / "tritonserver"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return binary


def test_a_binary_that_does_not_run(repository: Any, tmp_path: Path, leftovers: Any) -> None:
    binary = binary_with_its_own_backend(tmp_path, "echo error: creating server: out of luck\nexit 3")
    with pytest.raises(StartupFailed, match="tritonserver did not start: creating server: out of luck"):
        _server(repository.path, binary=binary).start()
    binary.write_bytes(b"\x7fELF no program")
    with pytest.raises(StartupFailed, match="Exec format error"):
        _server(repository.path, binary=binary).start()
    assert leftovers() == []


def test_too_few_threads(repository: Any, tmp_path: Path) -> None:
    """In a container that allows few PIDs tritonserver aborts in libc's words, or waits for a model that died of it."""
    script = 'echo "  what():  Resource temporarily unavailable"\nkill -ABRT $$'
    binary = binary_with_its_own_backend(tmp_path, script)
    with pytest.raises(StartupFailed, match=r"killed by SIGABRT\); let more threads run here, some 200 for a model"):
        _server(repository.path, binary=binary).start()


def test_too_few_threads_of_which_its_log_has_no_word(
    repository: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gRPC then never answers, and it was waited for to the end of --startup-timeout."""
    refused = iter(range(1000))
    monkeypatch.setattr("cnclip_server._startup.refused_threads", lambda: next(refused))
    binary = binary_with_its_own_backend(tmp_path, "sleep 100")
    with pytest.raises(StartupFailed, match=r"may start no more threads; let more threads run here, some 200 for a"):
        _server(repository.path, binary=binary).start()


def test_too_few_threads_for_a_user(repository: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -u` refuses without a word, and nothing counts it."""
    looks = iter([True, True, False, True, True, True])
    monkeypatch.setattr("cnclip_server._startup.has_all_its_threads", lambda: next(looks))
    binary = binary_with_its_own_backend(tmp_path, "sleep 100")
    with pytest.raises(StartupFailed, match="was not ready within 0.4 s"):  # and did not look: it takes a while
        _server(repository.path, binary=binary, startup_timeout_s=0.4).start()
    monkeypatch.setattr("cnclip_server._startup._POLLS_A_LOOK", 1)
    with pytest.raises(StartupFailed, match=r"may start no more threads; .*ulimit -u\)$"):
        _server(repository.path, binary=binary).start()
    assert list(looks) == []


def test_one_that_is_killed_while_it_starts(repository: Any, tmp_path: Path) -> None:
    """As where memory is short; on a host without a GPU it was said to fail for want of NVML."""
    binary = binary_with_its_own_backend(tmp_path, 'echo "error: Failed to initialize NVML"\nkill -KILL $$')
    with pytest.raises(StartupFailed, match=r"killed by SIGKILL, as when memory runs out\)"):
        _server(repository.path, binary=binary).start()


def test_a_start_that_triton_aborts_by_chance_is_made_once_more(repository: Any, tmp_path: Path) -> None:
    script = 'echo start >> "$0.starts"\necho "  what():  boost::interprocess::lock_exception"\nkill -ABRT $$'
    binary = binary_with_its_own_backend(tmp_path, script)
    with pytest.raises(StartupFailed, match="lock_exception"):
        _server(repository.path, binary=binary).start()
    assert binary.with_suffix(".starts").read_text() == "start\n" * 2


def test_a_binary_with_its_own_backend_keeps_it(repository: Any, tmp_path: Path) -> None:
    """As in NVIDIA's container: no stand-in, and the environment as it is. The script writes down what it gets."""
    binary = binary_with_its_own_backend(tmp_path, '# http-port\necho "$@ LD=$LD_LIBRARY_PATH" > "$0.called"\nexit 1')
    with pytest.raises(StartupFailed):
        _server(repository.path, binary=binary, extra_args=["--log-verbose=1"]).start()
    called = binary.with_suffix(".called").read_text()
    assert "--backend-directory" not in called
    assert "--metrics-address" not in called
    assert f"--model-repository={repository.path}" in called
    assert "--grpc-address=127.0.0.1" in called
    assert "--log-verbose=1" in called
    assert f"LD={os.environ.get('LD_LIBRARY_PATH', '')}\n" in called


@pytest.mark.triton
def test_a_log_has_an_end(repository: Any, tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused requests are a line each in a verbose log; what is older than one file's worth goes."""
    log = tmp_path / "server.log"
    flags = ["--log-verbose=1"]
    limit = 200_000
    with _server(repository.path, log_file=log, extra_args=flags, log_limit_bytes=limit) as server:

        def grown() -> bool:
            _infer(server.grpc_url)
            return Path(f"{log}.1").exists() and log.stat().st_size < limit

        assert eventually(grown, timeout_s=60)
        kept = Path(f"{log}.1").read_bytes()
        assert len(kept) > limit
        assert b"\0" not in kept + log.read_bytes()  # no hole: it is written at its end, wherever that is
        before = log.stat().st_size
        _infer(server.grpc_url)
        assert eventually(lambda: log.stat().st_size > before)


def test_too_few_open_files(repository: Any) -> None:
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        "from cnclip_server._cli import main; main()\n"
    )
    command = [sys.executable, "-c", script, str(repository.path), *FREE_PORTS]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no more than 20 files may be open here")
    assert result.stderr.endswith("raise the limit, as by `ulimit -n 65536`\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("trouble", ["full", "missing", "noexec"])
def test_temporary_folders_that_cannot_be_used(
    repository: Any, trouble: str, verbose: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def missing() -> Any:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if trouble == "full":
        monkeypatch.setattr("shutil.copyfile", full)
    elif trouble == "missing":
        monkeypatch.setattr(tempfile, "gettempdir", missing)
    else:
        flags = type("Flags", (), {"f_flag": os.ST_NOEXEC})
        monkeypatch.setattr(os, "statvfs", lambda path: flags)
    result = CliRunner().invoke(app, [str(repository.path), *FREE_PORTS, *(["-v"] if verbose else [])])
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    reason = {"full": "No space left on device", "missing": "No usable temp", "noexec": "it is mounted noexec"}[trouble]
    assert last.startswith(f"error: the temporary folder {folder} can't be used: {reason}")
    assert last.endswith("; name another with TMPDIR=/a/folder")
    assert ("Traceback" in result.stderr) == verbose
    assert list(folder.iterdir()) == []


@pytest.mark.triton
def test_a_killed_server(repository: Any, leftovers: Any, processes_of: Any, eventually: Any) -> None:
    with _server(repository.path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        assert server.wait(10) == 128 + signal.SIGKILL
        with pytest.raises(ServerError, match=r"does not answer .*; start\(\) the server"):
            server.models()
        assert eventually(lambda: leftovers() == [])
        assert processes_of(pid) == []


@pytest.fixture
def orphan(repository: Any, leftovers: Any, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has started a server and waits; its first line of output is the server's process id."""
    script = (
        "import sys, time; from pathlib import Path; from cnclip_server import TritonServer\n"
        "with TritonServer(Path(sys.argv[1]), grpc_port=0, http_port=0, metrics_port=0) as server:\n"
        "    print(server.pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(repository.path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.triton
def test_the_server_dies_with_its_killed_parent(
    orphan: subprocess.Popen[str], leftovers: Any, processes_of: Any, eventually: Any
) -> None:
    assert orphan.stdout is not None
    pid = int(orphan.stdout.readline())
    mine = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(f"cnclip_{orphan.pid}_")]
    assert mine != []
    assert leftovers() != []
    orphan.kill()
    orphan.wait()
    assert eventually(lambda: processes_of(pid) == [])
    assert eventually(lambda: leftovers() == [])
    assert not any(path.exists() for path in mine)
