"""Commands run to their end as processes of their own, without what a Python that starts and imports costs each time.

For each command one process imports it, and forks a child for each run, of the command or of a script that uses the
same package: the child has its own arguments, folder, environment, input, output and end. What a Python reads as it
starts (PYTHONUTF8, a locale, -W) is that of the process that forks, and input and output are files: a test of such, of
pipes, signals or a terminal starts a process itself.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

MAINS = {
    "cnclip": "cnclip_client._cli",
    "cnclip-build": "cnclip_builder.cli.app",
    "cnclip-serve": "cnclip_server._cli",
    "cnclip-bench": "cnclip_bench._cli",
    "cnclip-gateway": "cnclip_gateway._cli",
}
# What they import as they run, but for torch and the like: 0.5 s of a processor each time.
LATER = {
    "cnclip": ["pydantic.type_adapter", "pandas", "pyarrow.parquet", "faiss"],
    "cnclip-build": ["pydantic.type_adapter", "cnclip_builder.build", "cnclip_client"],
}

_FORKS = """
import atexit, gc, json, os, sys, threading, traceback
from contextlib import suppress
from importlib import import_module
import_module(sys.argv[1])
for name in sys.argv[2:]:
    with suppress(Exception):  # whoever needs it says what is wrong with it
        import_module(name)
gc.freeze()  # what is there stays shared with the children
for line in iter(sys.stdin.readline, ""):
    code, arguments, folder, environment, streams = json.loads(line)
    child = os.fork()
    if not child:
        for stream, path in enumerate(streams):
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            os.dup2(file, stream)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c", *arguments]
        status = 1
        try:
            exec(code, {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        # All that Python does at its end but to take modules down, one by one: 0.08 s of a processor.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_command(
    name: str,
    *arguments: str | bytes | os.PathLike[str],
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command of `MAINS`, as `subprocess.run` with its output captured would."""
    return _run(name, f"from {MAINS[name]} import main; main()", arguments, stdin, cwd, env)


def run_script(code: str, *arguments: str, name: str = "cnclip") -> subprocess.CompletedProcess[bytes]:
    """Runs a script as `python -c` would, where what it uses is imported: a command of `MAINS`, or a module.

    It must not mind what else is.
    """
    return _run(name, code, arguments, b"", None, os.environ)


def _run(
    name: str,
    code: str,
    arguments: Sequence[str | bytes | os.PathLike[str]],
    stdin: bytes,
    cwd: Path | None,
    env: Mapping[str, str],
) -> subprocess.CompletedProcess[bytes]:
    given = [os.fsdecode(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        into, out, err = (Path(folder, name) for name in ("in", "out", "err"))
        into.write_bytes(stdin)
        request = [code, given, str(cwd or Path.cwd()), dict(env), [str(into), str(out), str(err)]]
        status = _forks(name).ask(request)
        return subprocess.CompletedProcess([name, *given], status, out.read_bytes(), err.read_bytes())


def run_command_text(
    name: str, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """The same for arguments of any kind, with what it said as text."""
    done = run_command(name, *map(str, arguments), cwd=cwd, env=env)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class _Forks:
    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-X", "utf8", "-c", _FORKS, MAINS.get(name, name), *LATER.get(name, [])]
        self._process = subprocess.Popen(command, encoding="utf-8", **pipes)
        atexit.register(self._end)

    def ask(self, request: Sequence[object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def _end(self) -> None:
        self._process.communicate(timeout=10)


@cache
def _forks(name: str) -> _Forks:
    return _Forks(name)
