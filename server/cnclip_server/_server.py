"""Starts, watches and stops one tritonserver."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cnclip_machine import refused_threads

from cnclip_server._api import Api
from cnclip_server._backends import check_backends
from cnclip_server._binary import Binary, find_binary
from cnclip_server._command import (
    EXIT_TIMEOUT_S,
    Settings,
    Tls,
    check_flags,
    linked_repository,
    restriction_headers,
    server_command,
)
from cnclip_server._errors import PortInUse, RepositoryError, ServerError, StartupFailed, unreadable
from cnclip_server._folder import SHELL_SAFE, make_folder, told_by_name
from cnclip_server._health import Health
from cnclip_server._host import check_glibc, check_numpy, check_open_files, environment, wheel_libraries
from cnclip_server._log import (
    MORE_THREADS,
    failure_reason,
    lack_of_threads,
    last_line,
    serves_metrics,
    tail,
    unbound_service,
    without_keys,
)
from cnclip_server._ports import FLAGS, Ports
from cnclip_server._process import DEFAULT_LOG_LIMIT_BYTES, GuardedProcess, how_it_ended, was_killed
from cnclip_server._stub_python import lay_out_stub_python
from cnclip_server._watch import ModelWatch

logger = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.05
# How long a server may take to stop that never came up: one that is loading a model does not listen to SIGTERM.
_ABANDON_S = 3.0
# What the Python backend now and then aborts with as its processes begin (Triton's issues 5949 and 8882): seen in two
# of some thousands of starts, and it says nothing of the models.
_LOCK_FAILED = "boost::interprocess::lock_exception"
# How long after readiness the metrics, the last of the three services, may take to start; all of it is waited
# only where they are turned off.
_METRICS_TIMEOUT_S = 1.0
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


class TritonServer:
    """A tritonserver on a model repository, as a context manager.

        with TritonServer("repository", grpc_port=0, http_port=0, metrics_port=0) as server:
            client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

    Nothing of it outlives this process: a small guard process (`_guard.py`) kills the server and deletes its
    temporary files when `stop` is called, and also when this process ends without having called it, even by
    SIGKILL.

    Attributes:
        repository: The model repository.
        host: The IPv4 address, or the name, that the server listens on.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        binary: str | Path | None = None,
        extra_args: Sequence[str] = (),
        tls: Tls | None = None,
        admin_key: str | None = None,
        startup_timeout_s: float = 300.0,
        log_file: str | Path | None = None,
        log_limit_bytes: int = DEFAULT_LOG_LIMIT_BYTES,
    ) -> None:
        """Describes the server; `start`, or entering the context, starts it.

        Args:
            repository: A folder of models, each with its config.pbtxt.
            host: The IPv4 address, or name, to listen on; `0.0.0.0` for all of this machine's.
            grpc_port: The port for gRPC; 0 picks a free one, as for the two others.
            http_port: The port for HTTP, which is also how readiness is found out.
            metrics_port: The port for Prometheus metrics.
            binary: The tritonserver to run; None looks in TRITONSERVER, PATH and the nvidia-pytriton wheel.
            extra_args: Further flags for tritonserver; where they repeat one of ours, they win.
            tls: How gRPC is encrypted; None for plain text. HTTP, which Triton can't encrypt, then stays on loopback.
            admin_key: What a client has to send to use Triton's shared-memory, trace and logging APIs: for gRPC as
                the header `triton-grpc-protocol-admin-key`, for HTTP as `admin-key`. None for a key that nobody knows.
            startup_timeout_s: How long the models may take to load, in seconds.
            log_file: Where tritonserver's log goes, at its end; None keeps it in a temporary file until `stop`.
            log_limit_bytes: A log of more bytes is moved to a file of the same name with `.1` behind it, where it
                replaces the one before, and begun anew; 0 for a log without end.
        """
        self.repository = Path(repository)
        self.host = host
        self._wanted_ports = self._ports = Ports(grpc_port, http_port, metrics_port)
        self._binary = None if binary is None else Path(binary)
        self._extra_args = tuple(extra_args)
        self._tls = tls
        self._admin_key = admin_key
        self._startup_timeout_s = startup_timeout_s
        self._log_file = None if log_file is None else Path(log_file)
        self._log_limit_bytes = log_limit_bytes
        self._process: GuardedProcess | None = None
        self._health: Health | None = None

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> TritonServer:
        """Starts tritonserver and waits until every model is ready. A failure leaves nothing running.

        Returns:
            This server.

        Raises:
            BinaryNotFound: There is no tritonserver.
            UnsupportedHost: It cannot run here.
            TemporaryFolderError: The temporary folder is full, missing, or mounted noexec.
            RepositoryError: The repository does not exist or holds no model.
            SettingError: A further flag would hide the server from us.
            PortInUse: A port is taken.
            StartupFailed: tritonserver ended, or was not ready in time; a model that fails to load is the
            usual reason.
            ServerError: It runs already.
        """
        if self._process is not None:
            raise ServerError(f"this server runs already (process {self.pid}); stop() it first")
        return self._start(self._wanted_ports)

    def _start(self, wanted: Ports) -> TritonServer:
        _check_repository(self.repository)
        check_flags(self._extra_args, self._reachable_host, self._http_host)
        binary = find_binary(self._binary)
        check_open_files()
        with wanted.held(self.host) as self._ports:
            try:
                try:
                    self._begin(binary)
                except StartupFailed as error:
                    if _LOCK_FAILED not in error.reason:
                        raise
                    logger.warning("%s; it is started once more", error)
                    self.stop(timeout_s=_ABANDON_S)
                    self._begin(binary)
            except BaseException:
                self.stop(timeout_s=_ABANDON_S)
                raise
        self._health = Health(self.pid, self._api())
        logger.info("tritonserver %s serves %s at %s", self.pid, self.repository, self.grpc_url)
        return self

    def stop(self, timeout_s: float = EXIT_TIMEOUT_S + 5.0) -> None:
        """Stops the server with SIGTERM, and it and its stubs with SIGKILL after a while. May be repeated.

        Args:
            timeout_s: How long it may take to finish its requests and unload, in seconds.
        """
        process, self._process = self._process, None
        if process is not None:
            process.stop(timeout_s)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Waits for the server to end by itself.

        Args:
            timeout_s: How long to wait, in seconds; None waits for ever.

        Returns:
            Its exit status, or None if it still runs.

        Raises:
            ServerError: It was not started.
        """
        return self._running().wait(timeout_s)

    def troubles(self) -> list[str]:
        """What is wrong with the server and Triton does not mend; to be called every second or so.

        Tritonserver itself has ended, or answers nothing; a Python model's process died or is stopped; requests wait
        for a model of which nothing is executed, or all fail, over several looks. In all but the first, Triton goes on
        to call itself ready. `restart` mends it.

        Returns:
            A sentence each, in alphabetical order.

        Raises:
            ServerError: The server was not started.
        """
        if (status := self.wait(0)) is not None:
            return [f"tritonserver has ended ({how_it_ended(status)})"]
        return self._health.troubles() if self._health else []

    def restart(self) -> None:
        """Stops the server and starts it again on the same ports; clients that retry notice a pause.

        Raises:
            ServerError: As `start`; it is stopped then.
        """
        self.stop(timeout_s=_ABANDON_S)
        self._start(self._ports)

    @property
    def pid(self) -> int:
        """Tritonserver's process id."""
        pid = self._running().pid()
        if pid is None:
            raise ServerError("tritonserver could not be started; see its log")
        return pid

    @property
    def grpc_url(self) -> str:
        """Where gRPC is served, such as `127.0.0.1:8001`: what tritonclient calls a url."""
        return f"{self._reachable_host}:{self._ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where HTTP is served, such as `127.0.0.1:8000`, for tritonclient's HTTP client or a browser."""
        return f"{self._http_host}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where the Prometheus metrics are served, such as `127.0.0.1:8002`, under the path `/metrics`."""
        return f"{self._reachable_host}:{self._ports.metrics}"

    @property
    def log_path(self) -> Path:
        """Tritonserver's log; deleted by `stop` unless a `log_file` was given."""
        return self._running().log_path

    def models(self) -> list[str]:
        """The models that are ready, in alphabetical order: `name`, or `name:version` other than 1.

        Raises:
            ServerError: The server does not answer.
        """
        try:
            entries = self._api().index(timeout_s=10)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.http_url} does not answer ({error}); start() the server") from error
        return sorted(
            entry["name"] if entry["version"] == "1" else f"{entry['name']}:{entry['version']}" for entry in entries
        )

    def _api(self) -> Api:
        headers = restriction_headers(self._extra_args)
        return Api(self._http_host, self._ports.http, self._reachable_host, self._ports.metrics, headers)

    def _settings(self) -> Settings:
        return Settings(self.repository, self.host, self._ports, self._extra_args, self._tls, self._admin_key)

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104

    @property
    def _http_host(self) -> str:
        return self._reachable_host if self._tls is None else "127.0.0.1"

    def _running(self) -> GuardedProcess:
        if self._process is None:
            raise ServerError("the server does not run; call start() first")
        return self._process

    def _launch(self, binary: Binary) -> GuardedProcess:
        """Lays out the temporary folder and starts tritonserver."""
        environ = _environment_of(binary)
        # Names that no other server uses, so that the guard can tell ours from theirs when it cleans up.
        shm_prefix = f"cnclip_{os.getpid()}_{secrets.token_hex(4)}_"
        settings = self._settings()
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
                log_path=self._log_file or folder / "tritonserver.log",
                log_limit_bytes=self._log_limit_bytes,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _begin(self, binary: Binary) -> None:
        self._process = self._launch(binary)
        self._await_ready(self._process)

    def _log_of(self, process: GuardedProcess) -> str:
        """What it has written, for messages."""
        return without_keys(process.read_log(), self._settings().keys)

    def _await_ready(self, process: GuardedProcess) -> None:
        """Polls readiness until it is there, the process has ended, or the time is over."""
        deadline = time.monotonic() + self._startup_timeout_s
        api = self._api()
        pid = process.pid()
        watch = None if pid is None else ModelWatch(pid)
        refused = refused_threads()
        while (status := process.wait(_POLL_INTERVAL_S)) is None:
            if api.is_ready():
                if _is_bound(process):
                    return
                break
            if watch is not None and (dead := watch.look()):  # Triton goes on to wait for it
                log = self._log_of(process)
                fix = lack_of_threads(log) or "see that there is memory for all models, and its log (-v, log_file)"
                raise StartupFailed(
                    f"{'; '.join(sorted(dead.values()))}; tritonserver's last word was: {last_line(log)}; {fix}",
                    tail(log),
                )
            if refused_threads() > refused:  # gRPC, for one, says nothing of it, and never answers
                raise StartupFailed(
                    f"tritonserver may start no more threads; {MORE_THREADS}", tail(self._log_of(process))
                )
            if time.monotonic() > deadline:
                log = self._log_of(process)
                raise StartupFailed(
                    f"tritonserver was not ready within {self._startup_timeout_s:g} s; its last word was: "
                    f"{last_line(log)}; give it longer (startup_timeout_s, --startup-timeout)",
                    tail(log),
                )
        log = self._log_of(process)
        service = unbound_service(log)
        if service in FLAGS:
            raise PortInUse(self.host, getattr(self._ports, service), FLAGS[service])
        reason = failure_reason(log)
        if reason is None or was_killed(status or 0):  # the log of one that was killed has other words, if any
            reason = f"{reason or last_line(log)} ({how_it_ended(status or 0)})"
        # The reader knows the repository by its own name, not by that of our link to it.
        reason = reason.replace(str(linked_repository(process.folder)), str(self.repository))
        raise StartupFailed(
            "; ".join(filter(None, (f"tritonserver did not start: {reason}", lack_of_threads(log)))), tail(log)
        )


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
