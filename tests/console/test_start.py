"""How a command begins: Ctrl-C while it is still being imported."""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cnclip_console import start

COMMANDS = [module.name for module in pkgutil.iter_modules(start.__path__)]
# Stands for the libraries that commands begin with: whichever comes first is imported until the test is done.
LIBRARIES = ("numpy", "typer")
SLOW = "import time; print('importing', flush=True); time.sleep(60)\n"


@pytest.fixture
def slow_libraries(tmp_path: Path) -> Path:
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text(SLOW)
    return tmp_path


def starting(command: str, libraries: Path, before: str = "pass") -> subprocess.Popen[str]:
    paths = [str(libraries), *(path for path in sys.path if path)]
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}; from cnclip_console.start.{command} import main; main()"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_a_command_that_is_being_imported_without_a_word(command: str, slow_libraries: Path) -> None:
    with starting(command, slow_libraries) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "importing\n"
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=30)
    assert (running.returncode, told) == (130, "")


def test_interrupts_that_are_ignored_stay_so(slow_libraries: Path) -> None:
    """As a shell's `&` starts a command, or nohup."""
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with starting("client", slow_libraries, ignoring) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "importing\n"
            running.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(0.5)
        finally:
            running.kill()


def test_ctrl_c_is_a_commands_own_affair_once_it_runs(tmp_path: Path) -> None:
    (tmp_path / "slow_command.py").write_text(
        "def main():\n    import signal; print(signal.getsignal(signal.SIGINT))\n"
    )
    code = "from cnclip_console import start; start.run('slow_command')"
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "default_int_handler" in ran.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_grpc_is_silent_from_its_import_on_but_in_a_servers_log(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads how much it is to write as it is imported, and a command's error is one line."""
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text("import os, sys; sys.exit(os.environ.get('GRPC_VERBOSITY'))\n")
    with starting(command, tmp_path) as running:
        _, told = running.communicate(timeout=30)
    assert told == ("" if command == "serve" else "NONE\n")


def test_a_command_without_stdout_runs_all_the_same(tmp_path: Path) -> None:
    """As `>&-` starts it: the next file that it opens must not be taken for stdout."""
    (tmp_path / "command.py").write_text(
        "import pathlib, sys\n"
        "def main():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        print('into nowhere', flush=True); file.write(str(sys.stdout.isatty()))\n"
    )
    code = "from cnclip_console import start; start.run('command')"
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    closed = 'exec "$@" >&- <&-'
    command = ["bash", "-c", closed, "bash", sys.executable, "-c", code, str(tmp_path / "file")]
    ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=env, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "False"


def test_a_reader_that_goes_away_ends_a_command_without_a_word() -> None:
    code = (
        "from cnclip_console import plain_app; import typer; app = plain_app(); "
        "app.command()(lambda: [typer.echo(line) for line in range(100)]); app()"
    )
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")
