"""Starts, watches and stops one tritonserver."""

from __future__ import annotations

import http.client
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from cnclip_server._binary import Binary
from cnclip_server._command import EXIT_TIMEOUT_S
from cnclip_server._errors import ServerError, StartupFailed
from cnclip_server._health import Health
from cnclip_server._ports import Ports
from cnclip_server._process import DEFAULT_LOG_LIMIT_BYTES, GuardedProcess, how_it_ended
from cnclip_server._settings import Settings, Tls, reachable
from cnclip_server._startup import ABANDON_S, await_ready, check_settings, failed_by_chance, launch

logger = logging.getLogger(__name__)


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
        self._wanted = self._settings = Settings(
            repository=Path(repository),
            host=host,
            ports=Ports(grpc_port, http_port, metrics_port),
            binary=None if binary is None else Path(binary),
            extra_args=tuple(extra_args),
            tls=tls,
            admin_key=admin_key,
            startup_timeout_s=startup_timeout_s,
            log_file=None if log_file is None else Path(log_file),
            log_limit_bytes=log_limit_bytes,
        )
        self.repository, self.host = self._wanted.repository, host
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
        return self._start(self._wanted)

    def _start(self, wanted: Settings) -> TritonServer:
        binary = check_settings(wanted)
        with wanted.ports.held(wanted.host) as ports:
            self._settings = replace(wanted, ports=ports)
            try:
                self._begin(binary)
            except StartupFailed as error:
                if not failed_by_chance(error):
                    raise
                logger.warning("%s; it is started once more", error)
                self._begin(binary)
        self._health = Health(self.pid, self._settings.api())
        logger.info("tritonserver %s serves %s at %s", self.pid, self.repository, self.grpc_url)
        return self

    def _begin(self, binary: Binary) -> None:
        self._process = launch(binary, self._settings)
        try:
            await_ready(self._process, self._settings)
        except BaseException:
            self.stop(ABANDON_S)
            raise

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
        self.stop(ABANDON_S)
        self._start(self._settings)

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
        return f"{reachable(self.host)}:{self._settings.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where HTTP is served, such as `127.0.0.1:8000`, for tritonclient's HTTP client or a browser."""
        return f"{reachable(self._settings.http_host)}:{self._settings.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where the Prometheus metrics are served, such as `127.0.0.1:8002`, under the path `/metrics`."""
        return f"{reachable(self.host)}:{self._settings.ports.metrics}"

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
            entries = self._settings.api().index(timeout_s=10)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.http_url} does not answer ({error}); start() the server") from error
        return sorted(
            entry["name"] if entry["version"] == "1" else f"{entry['name']}:{entry['version']}" for entry in entries
        )

    def _running(self) -> GuardedProcess:
        if self._process is None:
            raise ServerError("the server does not run; call start() first")
        return self._process
