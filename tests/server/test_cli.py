"""`cnclip-serve` as a user runs it: a process of its own, some of them on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cnclip_console
import cnclip_machine
import cnclip_server
import numpy as np
import pytest
import tritonclient.grpc as grpc
import trustme
from cnclip_server import ServerError, StartupFailed, Tls
from cnclip_server._cli import _follow, _serve, _shown_log, _telling_of_loading, app
from cnclip_server._renewals import Renewals
from cnclip_server._watch import children_of
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

COMMAND = [sys.executable, "-c", "from cnclip_server._cli import main; main()"]
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextlib.contextmanager
def _started(*args: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _until_serving(process: subprocess.Popen[str]) -> dict[str, str]:
    """Reads stdout to the line of the first model."""
    assert process.stdout is not None
    facts = {}
    while "model" not in facts:
        key, _, value = process.stdout.readline().partition(" ")
        assert key, "the command ended before it served"
        facts[key] = value.strip()
    return facts


def _but_of_loading(said: str) -> str:
    """What else a command said than that it loads for long, as it does on a busy machine."""
    return re.sub(r"\A.* is loading; .*\n", "", said)


def _listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.triton
def test_says_where_it_is_and_stops_on_a_signal(repository: Any) -> None:
    with _started(str(repository.path), *FREE_PORTS) as process:
        facts = _until_serving(process)
        assert list(facts) == ["grpc", "http", "metrics", "model"]
        assert facts["model"] == "echo"
        assert re.fullmatch(r"127\.0\.0\.1:\d+", facts["grpc"])
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", facts["metrics"])
        assert _listens(facts["grpc"])
        assert _listens(facts["http"])
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert (out, _but_of_loading(err)) == ("", "stopped\n")
    assert not _listens(facts["grpc"])


class Serving:
    """A server that runs for so many looks."""

    grpc_url = http_url = metrics_url = "127.0.0.1:1"

    def __init__(self, looks: list[Any]) -> None:
        self.looks, self.restarts = looks, 0

    def models(self) -> list[str]:
        return ["echo"]

    def wait(self, timeout_s: float) -> int | None:
        if not self.looks:
            return 3
        self.looks.pop(0)()
        return None

    def troubles(self) -> list[str]:
        return []

    def restart(self) -> None:
        self.restarts += 1


def test_a_server_that_is_killed_while_it_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    """What killed it is there still: the tries that are left are for that."""
    server = Serving([lambda: None, lambda: None])
    troubles = ["tritonserver has ended (killed by SIGKILL)", ""]
    failed = "tritonserver did not start: nothing (killed by SIGKILL)"

    def restart() -> None:
        server.restarts += 1
        if server.restarts != 3:
            raise StartupFailed(failed, "")

    server.restart = restart  # type: ignore[method-assign]
    server.troubles = lambda: [one] if (one := troubles.pop(0)) else []  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="ended by itself"):
        _serve(server, 3, 60.0, None)  # type: ignore[arg-type]
    assert server.restarts == 3
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in said] == [
        *(f"restarting the server ({number} of 3)" for number in (1, 2, 3)),
        "the server is back",
    ]
    assert said[1].startswith(failed)
    server, troubles = Serving([lambda: None]), ["it has ended"]
    server.restart = restart  # type: ignore[method-assign]
    server.troubles = lambda: troubles  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="killed by SIGKILL.; gave up after 2 restarts"):
        _serve(server, 2, 60.0, None)  # type: ignore[arg-type]


def test_starts_that_fail_in_a_row_take_longer_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was forgotten before the last allowed one, and the server started for ever."""
    server = Serving([lambda: None])

    def restart() -> None:
        server.restarts += 1
        if server.restarts > 5:
            raise AssertionError("started again and again")
        raise StartupFailed("tritonserver was not ready within 100 s", "")

    server.restart = restart  # type: ignore[method-assign]
    server.troubles = lambda: ["it has ended"]  # type: ignore[method-assign]
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 * server.restarts)
    with pytest.raises(ServerError, match=r"not ready within 100 s; gave up after 3 restarts .* within 300 s;"):
        _serve(server, 3, 60.0, None)  # type: ignore[arg-type]


def test_a_renewed_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tritonserver reads it at its start alone: it is started again, once both halves are there."""
    issued = [trustme.CA().issue_cert("127.0.0.1") for _ in range(2)]
    files = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(number: int, *halves: int) -> None:
        for half in halves:
            part = (issued[number].cert_chain_pems[0], issued[number].private_key_pem)[half]
            part.write_to_path(tmp_path / "new")
            (tmp_path / "new").replace(files[half])

    write(0, 0, 1)
    renewals = Renewals(Tls(*files))

    def quiet() -> None:
        pass

    server = Serving(
        [quiet, lambda: write(1, 0), quiet, quiet, files[1].unlink, quiet, lambda: write(1, 1), quiet, quiet]
    )
    with pytest.raises(ServerError, match="ended by itself"):
        _serve(server, 0, 1.0, renewals)  # type: ignore[arg-type]
    assert server.restarts == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "warning",  # another's key
        "warning",  # none
        "the certificate was renewed",
        "the server is back",
    ]


@pytest.mark.triton
def test_an_environment_whose_path_is_not_ascii(repository: Any, tmp_path: Path) -> None:
    """What `make` installs into a folder with a Chinese name: `.venv`, and in it the names of this project's folders."""
    project, environment = tmp_path / "图文 检索", tmp_path / "图文 检索" / ".venv"
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    (environment / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "cn_clip_triton" not in path.name:
            (packages / path.name).symlink_to(path)
    with (packages / "ours.pth").open("w", encoding="utf-8") as ours:
        for package in (cnclip_server, cnclip_console, cnclip_machine):
            folder = Path(package.__path__[0]).parent
            (project / folder.name).symlink_to(folder, target_is_directory=True)
            ours.write(f"{project / folder.name}\n")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [
        str(environment / "bin" / "python3"),
        *COMMAND[1:],
        str(repository.path),
        *FREE_PORTS,
        "--startup-timeout",
        "60",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environ, "LC_ALL": "C.UTF-8"}
    ) as process:
        try:
            assert _answers(_until_serving(process)["grpc"])
            process.send_signal(signal.SIGINT)  # as SIGTERM above
            out, err = process.communicate(timeout=20)
            assert (out, _but_of_loading(err)) == ("", "stopped\n")
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.mark.triton
def test_control_c_on_a_terminal(repository: Any) -> None:
    """The key itself, which the terminal turns into a signal for every process in the foreground."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [*COMMAND, str(repository.path), *FREE_PORTS, "-v"], ENVIRONMENT)
    seen = b""
    status: int | None = None
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # The other end is closed: the command has ended.
                    break
            if b"model    echo" in seen and b"\x03" not in seen and status is None:
                os.write(terminal, b"\x03")
                status = -1
        _, waited = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(waited)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)
    text = seen.decode()
    assert status == 0, text
    assert "stopped" in text
    assert "Traceback" not in text
    # -v: tritonserver's own log, to its end.
    assert "successfully loaded 'echo'" in text
    assert "successfully unloaded 'echo'" in text


def _stub(server: int) -> int:
    """A process of the Python backend below tritonserver's guard."""
    children = [*children_of(server)]
    found = [child for child in children if "stub" in Path(f"/proc/{child}/comm").read_text() + _program(child)]
    return found[0] if found else _stub(children[0])


def _answers(url: str) -> bool:
    x = grpc.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([[1, 2]], np.float32))
    try:
        with grpc.InferenceServerClient(url) as client:
            return bool(client.infer("echo", [x]).as_numpy("y").tolist() == [[1, 2]])
    except InferenceServerException:
        return False


def _program(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]


@pytest.mark.triton
def test_a_server_that_dies_is_replaced(repository: Any) -> None:
    with _started(str(repository.path), *FREE_PORTS, "--max-restarts", "1", "--", "--id=mine") as process:
        facts = _until_serving(process)

        def kill(with_signal: int) -> None:
            (guard,) = children_of(process.pid)
            (server,) = children_of(guard)
            assert b"--id=mine" in Path(f"/proc/{server}/cmdline").read_bytes()
            os.kill(server, with_signal)

        assert process.stderr is not None
        kill(signal.SIGSEGV)
        said = ""
        while _but_of_loading(said).count("\n") < 2 and (line := process.stderr.readline()):
            said += line
        assert _but_of_loading(said) == (
            "tritonserver has ended (killed by SIGSEGV): restarting the server (1 of 1)\nthe server is back\n"
        )
        assert _answers(facts["grpc"])
        kill(signal.SIGKILL)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == (
        "error: tritonserver has ended (killed by SIGKILL, as when memory runs out); "
        "gave up after 1 restart (--max-restarts) within 3600 s; run with -v to see why\n"
    )


@pytest.mark.triton
def test_a_model_process_that_dies_is_replaced(repository: Any) -> None:
    with _started(str(repository.path), *FREE_PORTS, "--max-restarts", "1", "-v") as process:
        facts = _until_serving(process)
        assert _answers(facts["grpc"])
        os.kill(_stub(process.pid), signal.SIGKILL)
        assert process.stderr is not None
        said = ""
        while "restarting" not in said:
            said = process.stderr.readline()
        assert "a process of echo died, and Triton does not replace it: restarting the server (1 of 1)" in said
        while said != "the server is back\n":
            said = process.stderr.readline()
        assert _answers(facts["grpc"])
        os.kill(_stub(process.pid), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "gave up after 1 restart (--max-restarts)" in err.splitlines()[-1]
    assert "Waiting for in-flight requests" in err  # -v goes on showing the log of the second start


@pytest.mark.triton
def test_a_model_that_is_loaded_anew_is_not_dead(repository: Any, eventually: Any) -> None:
    """With what docs/security.md advises for servers that load at run time: the model-repository API is closed."""
    model = repository.path / "echo" / "1" / "model.onnx"
    flags = [
        "--model-control-mode=poll",
        "--repository-poll-secs=1",
        "--http-restricted-api=model-repository:some-key=x=y",
        "--grpc-restricted-protocol=model-repository:some-key=x=y",
    ]
    with _started(str(repository.path), *FREE_PORTS, "--max-restarts", "0", "--", *flags) as process:
        facts = _until_serving(process)
        assert facts["model"] == "echo"
        for _ in range(2):
            old = _stub(process.pid)
            os.utime(model)
            assert eventually(lambda old=old: not Path(f"/proc/{old}").exists(), timeout_s=20)
            assert _answers(facts["grpc"])
        time.sleep(2)
        assert process.poll() is None
        os.kill(_stub(process.pid), signal.SIGKILL)  # one that was born long after the server
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a process of echo died" in err


def test_the_shown_log_goes_on_when_it_is_begun_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text("first\n" * 1000)
    ended = threading.Event()
    with path.open("rb") as file:
        follower = threading.Thread(target=_follow, args=(file, ended))
        follower.start()
        time.sleep(0.3)
        os.truncate(path, 0)
        with path.open("a") as log:
            log.write("second\n")
        time.sleep(0.3)
        ended.set()
        follower.join()
    assert capfd.readouterr().err == "first\n" * 1000 + "second\n"


def test_nothing_is_left_of_the_shown_log_whatever_ends_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A closed terminal or a SIGKILL left up to 128 MB in the temporary folder each time."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with _shown_log() as path:
        assert list(tmp_path.iterdir()) == []
        with path.open("ab") as log:
            log.write(b"one\n")
    assert capfd.readouterr().err == "one\n"


@pytest.mark.triton
def test_a_model_that_does_not_load_is_one_line(repository: Any, nets: Any, xy: str) -> None:
    repository.add("broken", nets.identity([1, "L"]), xy)
    with _started(str(repository.path), *FREE_PORTS) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert re.fullmatch(
        r"error: tritonserver did not start: model 'broken' failed to load: [^\n]*\n", _but_of_loading(err)
    )


def test_models_that_load_for_long_are_waited_for_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], eventually: Any
) -> None:
    said: list[str] = []
    with _telling_of_loading(Path("repository"), 300.0):
        assert capsys.readouterr().err == ""
    monkeypatch.setattr("cnclip_server._cli._QUIET_S", 0.0)
    with _telling_of_loading(Path("repository"), 300.0):
        eventually(lambda: said.append(capsys.readouterr().err) or "".join(said))
    said.append(capsys.readouterr().err)
    assert "".join(said) == "repository is loading; waiting for it, for 300 s at most (--startup-timeout)\n"


def test_errors_have_a_traceback_only_when_asked_for(tmp_path: Path) -> None:
    plain = CliRunner().invoke(app, [str(tmp_path / "nowhere")])
    assert plain.exit_code == 1
    assert plain.stdout == ""
    assert plain.stderr.count("\n") == 1
    assert plain.stderr.startswith("error: the model repository")
    verbose = CliRunner().invoke(app, [str(tmp_path / "nowhere"), "-v"])
    assert verbose.exit_code == 1
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.splitlines()[-1] == plain.stderr.strip()


def test_a_port_in_use_names_the_option(repository: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, [str(repository.path), "--http-port", port])
    assert result.exit_code == 1
    assert re.search(rf"port {port} .*--http-port|port 8001 .*--grpc-port", result.stderr)


def test_a_missing_binary_is_named(repository: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(repository.path), "--tritonserver", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "none is not an executable file" in result.stderr
    assert "pip install --no-deps nvidia-pytriton" in result.stderr


def test_help() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for word in (
        "--host",
        "--grpc-port",
        "--http-port",
        "--metrics-port",
        "--tritonserver",
        "-v",
        "Ctrl-C",
        "-- FLAGS",
    ):
        assert word in result.stdout


def test_strays_are_not_handed_to_tritonserver() -> None:
    result = CliRunner().invoke(app, ["repository", "another"])
    assert result.exit_code == 2
    assert "unexpected argument 'another'" in result.stderr
    assert CliRunner().invoke(app, ["repository", "--log-verbose=1"]).exit_code == 2


def test_a_file_in_a_repositorys_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, [str(tmp_path / "file")])
    assert result.exit_code == 1
    assert result.output == (
        f"error: the model repository {tmp_path}/file is a file, not a folder of models; "
        "give a folder written by `cnclip-build`, as `make repo` runs it\n"
    )
