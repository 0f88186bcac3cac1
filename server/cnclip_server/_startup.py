"""Starts a tritonserver and waits until all its models are ready, or says why they are not."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

from cnclip_machine import refused_threads

from cnclip_server._backends import check_backends
from cnclip_server._binary import Binary, find_binary
from cnclip_server._command import linked_repository, server_command
from cnclip_server._errors import PortInUse, RepositoryError, ServerError, StartupFailed, unreadable
from cnclip_server._folder import SHELL_SAFE, make_folder, told_by_name
from cnclip_server._host import (
    check_glibc,
    check_numpy,
    check_open_files,
    environment,
    has_all_its_threads,
    wheel_libraries,
)
from cnclip_server._log import (
    MORE_THREADS,
    failure_reason,
    lack_of_gpus,
    lack_of_threads,
    last_line,
    serves_metrics,
    tail,
    unbound_service,
    without_keys,
)
from cnclip_server._ports import FLAGS
from cnclip_server._process import GuardedProcess, how_it_ended, was_killed
from cnclip_server._settings import Settings, check_flags, reachable
from cnclip_server._stub_python import lay_out_stub_python
from cnclip_server._watch import ModelWatch

_POLL_INTERVAL_S = 0.05
# How long a server may take to stop that never came up: one that is loading a model does not listen to SIGTERM.
ABANDON_S = 3.0
# How long after readiness the metrics, the last of the three services, may take to start; all of it is waited
# only where they are turned off.
_METRICS_TIMEOUT_S = 1.0
# So many looks in a row must see that the user has all the threads that it may; each goes through all processes, which
# takes 15 ms where there are 500, so there is one a second.
_FULL_LOOKS = 3
_POLLS_A_LOOK = 20
# Triton logs that a service has started and finds its port taken some 5 ms later.
_SETTLE_S = 0.1


def require_tritonserver() -> None:
    """Sees that there is a tritonserver and that it can run here, without starting it: before work that ends in that.

    Raises:
        BinaryNotFound: There is no tritonserver.
        UnsupportedHost: It cannot run here.
    """
    binary = find_binary()
    check_open_files()
    _environment_of(binary)
    if not binary.has_onnxruntime:
        check_backends(binary)


def _environment_of(binary: Binary) -> dict[str, str]:
    if binary.has_onnxruntime:
        return dict(os.environ)
    check_glibc()
    if wheel_libraries(binary) is not None:
        check_numpy()
    return environment(binary)


def check_settings(settings: Settings) -> Binary:
    """Returns what to serve with, if there is something to serve. Raises as `TritonServer.start`."""
    _check_repository(settings.repository)
    check_flags(settings.extra_args, reachable(settings.host), reachable(settings.http_host))
    binary = find_binary(settings.binary)
    check_open_files()
    return binary


def launch(binary: Binary, settings: Settings) -> GuardedProcess:
    """Lays out the temporary folder and starts tritonserver. Raises as `TritonServer.start`."""
    environ = _environment_of(binary)
    # Names that no other server uses, so that the guard can tell ours from theirs when it cleans up.
    shm_prefix = f"cnclip_{os.getpid()}_{secrets.token_hex(4)}_"
    folder = make_folder()
    try:
        with told_by_name(folder):
            command = server_command(binary, settings, folder=folder, shm_prefix=shm_prefix)
            if not binary.has_onnxruntime and (python := lay_out_stub_python(folder)) is not None:
                environ["PATH"] = f"{python}{os.pathsep}{environ['PATH']}"
                del environ["PYTHONPATH"]  # whose paths it has by other names
        return GuardedProcess(
            command,
            folder=folder,
            shm_prefix=shm_prefix,
            environ=environ,
            log_path=settings.log_file or folder / "tritonserver.log",
            log_limit_bytes=settings.log_limit_bytes,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def await_ready(process: GuardedProcess, settings: Settings) -> None:
    """Polls readiness until it is there. Raises as `TritonServer.start`."""
    deadline = time.monotonic() + settings.startup_timeout_s
    api = settings.api()
    pid = process.pid()
    watch = None if pid is None else ModelWatch(pid)
    threads = _Threads()
    while (status := process.wait(_POLL_INTERVAL_S)) is None:
        if api.is_ready():
            if _is_bound(process):
                return
            break
        if watch is not None and (dead := watch.look()):  # Triton goes on to wait for it
            log = _log_of(process, settings)
            fix = lack_of_threads(log) or "see that there is memory for all models, and its log (-v, log_file)"
            raise StartupFailed(
                f"{'; '.join(sorted(dead.values()))}; tritonserver's last word was: {last_line(log)}; {fix}", tail(log)
            )
        if threads.are_too_few():  # gRPC, for one, says nothing of it, and never answers
            raise StartupFailed(
                f"tritonserver may start no more threads; {MORE_THREADS}", tail(_log_of(process, settings))
            )
        if time.monotonic() > deadline:
            log = _log_of(process, settings)
            raise StartupFailed(
                f"tritonserver was not ready within {settings.startup_timeout_s:g} s; its last word was: "
                f"{last_line(log)}; give it longer (startup_timeout_s, --startup-timeout)",
                tail(log),
            )
    raise _failure(process, settings, status or 0)


class _Threads:
    """Threads that a start is refused: a container counts them; those that `ulimit -u` refuses nobody does."""

    def __init__(self) -> None:
        self._refused = refused_threads()
        self._polls = self._full = 0

    def are_too_few(self) -> bool:
        """Whether some were refused since. It is to be asked at each poll."""
        self._polls += 1
        if self._polls % _POLLS_A_LOOK == 0:
            self._full = self._full + 1 if has_all_its_threads() else 0
        return refused_threads() > self._refused or self._full == _FULL_LOOKS


def failed_by_chance(error: StartupFailed) -> bool:
    """Whether a server failed by what says nothing of its models.

    That is what the Python backend now and then aborts with as its processes begin (Triton's issues 5949 and 8882),
    seen in two of some thousands of starts.
    """
    return "boost::interprocess::lock_exception" in error.reason


def _is_bound(process: GuardedProcess) -> bool:
    """Whether the server that is ready is ours, and got its ports: it is ready before it has them all.

    Returns:
        False if it has ended, or is about to because a port is taken.
    """
    deadline = time.monotonic() + _METRICS_TIMEOUT_S
    while time.monotonic() < deadline and not serves_metrics(process.read_log()):
        if process.wait(_POLL_INTERVAL_S / 5) is not None:
            return False
    return process.wait(_SETTLE_S) is None and unbound_service(process.read_log()) is None


def _failure(process: GuardedProcess, settings: Settings, status: int) -> ServerError:
    """Returns what to raise of a server that ended, with a status, or that cannot listen: what its log says."""
    log = _log_of(process, settings)
    service = unbound_service(log)
    if service in FLAGS:
        return PortInUse(settings.host, getattr(settings.ports, service), FLAGS[service])
    reason = failure_reason(log)
    if reason is None or was_killed(status):  # the log of one that was killed has other words, if any
        reason = f"{reason or last_line(log)} ({how_it_ended(status)})"
    # The reader knows the repository by its own name, not by that of our link to it.
    reason = reason.replace(str(linked_repository(process.folder)), str(settings.repository))
    told = filter(None, (f"tritonserver did not start: {reason}", lack_of_threads(log), lack_of_gpus(log)))
    return StartupFailed("; ".join(told), tail(log))


def _log_of(process: GuardedProcess, settings: Settings) -> str:
    """What a server has written, for messages."""
    return without_keys(process.read_log(), settings.keys)


def _check_repository(repository: Path) -> None:
    """Refuses a folder that tritonserver would come up on without a single model.

    Raises:
        RepositoryError: It does not exist, no folder in it has a config.pbtxt, or one cannot be read; or a model's name
            would not survive Triton's shell, with which its Python backend starts a process: it dies, or hangs.
    """
    if not repository.is_dir():
        what = "is a file, not a folder of models" if repository.exists() else "does not exist"
        raise RepositoryError(repository, f"the model repository {repository} {what}")
    found = 0
    try:
        for folder in sorted(repository.iterdir()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), (folder / "config.pbtxt").open("rb"):
                found += 1
                if not SHELL_SAFE.fullmatch(folder.name):
                    raise RepositoryError(
                        repository,
                        f"Triton can't serve a model named {folder.name!r}: its name goes through a shell",
                        "name it with letters of ASCII, digits, '.', '_' and '-' (cnclip-build's --name)",
                    )
    except OSError as error:
        raise unreadable(repository, error) from error
    if not found:
        raise RepositoryError(repository, f"{repository} holds no model: no folder in it has a config.pbtxt")
