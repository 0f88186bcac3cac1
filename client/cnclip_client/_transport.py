"""The connection: the few calls of Triton's gRPC service that the client needs, with errors mapped."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from cnclip_client._exceptions import CnclipError
from cnclip_client._mapping import map_error, status_of
from cnclip_client._settings import Retry, Timeout
from cnclip_client._wire import bytes_input

__all__ = ["Listed", "Transport", "check_url"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# What gRPC itself resolves; any other `scheme:` is taken for a host and fails with a puzzling message.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


class Listed(NamedTuple):
    """One line of the server's repository index; `state` is empty for a model that was never loaded."""

    name: str
    version: str
    state: str
    reason: str


def check_url(url: str) -> str:
    """Returns the address unchanged.

    Raises:
        ValueError: It is not `host:port`.
    """
    if "://" in url and not url.startswith(_GRPC_SCHEMES):
        raise ValueError(f"{url!r} is not host:port; leave out the {url.split('://')[0]}://")
    if not url.startswith(_GRPC_SCHEMES) and not re.search(r"[^:]:\d{1,5}$", url):
        raise ValueError(f"{url!r} has no port; write host:8001 (Triton's gRPC port)")
    return url


class Transport:
    """A gRPC channel to one server. It connects at the first call, and again by itself after a loss.

    Attributes:
        url: The server's address.
        timeout: Deadlines.
        retry: When to try again.
        closed: Whether `close` was called.
    """

    def __init__(self, url: str, timeout: Timeout, retry: Retry) -> None:
        self.url = check_url(url)
        self.timeout = timeout
        self.retry = retry
        self.closed = False
        self._answered = False
        self._client = InferenceServerClient(url, channel_args=_channel_args(timeout, retry))

    def close(self) -> None:
        """Closes the channel; requests under way end as cancelled."""
        if not self.closed:
            self.closed = True
            self._client.close()

    def config(self, name: str, version: str) -> tuple[dict[str, str], int]:
        """Returns the parameters and the `max_batch_size` of one version of a model.

        Raises:
            ModelNotFound: The server has no such model; `.available` is not yet looked up.
            ModelNotReady: It does not serve the model at present.
            TransportError: No answer.
            ServerError: Anything else.
        """
        answer = self._call(
            name, lambda timeout_s: self._client.get_model_config(name, version, client_timeout=timeout_s)
        )
        config = answer.config
        return {key: value.string_value for key, value in config.parameters.items()}, config.max_batch_size

    def latest_version(self, name: str) -> str:
        """Returns the highest version that the server serves of a model. Raises as `config` does."""
        answer = self._call(name, lambda timeout_s: self._client.get_model_metadata(name, client_timeout=timeout_s))
        return str(max((int(version) for version in answer.versions), default=1))

    def index(self) -> list[Listed]:
        """Returns what the server's repository holds.

        Raises:
            TransportError: No answer.
            ServerError: Anything else: the server may be started with this call restricted.
        """
        answer = self._call(
            "",
            lambda timeout_s: self._client.get_model_repository_index(client_timeout=timeout_s),
            attempts=1,
        )
        return [Listed(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]

    def send(
        self,
        name: str,
        version: str,
        tensors: tuple[str, str],
        payloads: Sequence[bytes],
        done: Callable[[Any, Any], None],
    ) -> Any:
        """Sends one inference request and returns at once.

        Args:
            name: The model's full name.
            version: The version asked for.
            tensors: The input's and the output's name.
            payloads: The input's rows.
            done: Called from a thread of gRPC's with (InferResult, None) or (None, InferenceServerException).

        Returns:
            A handle with `cancel()`.

        Raises:
            RuntimeError: The client was closed.
        """
        self.require_open()
        try:
            return self._client.async_infer(
                name,
                [bytes_input(tensors[0], payloads)],
                lambda result, error: done(result, error),
                model_version=version,
                outputs=[InferRequestedOutput(tensors[1])],
                client_timeout=self.timeout.request_s,
            )
        except ValueError as error:
            # What gRPC raises where another thread has closed the channel since.
            self.require_open(error)
            raise

    def map(self, error: Any, name: str) -> CnclipError:
        """Returns this package's error for that of an inference request.

        Raises:
            RuntimeError: The client was closed while the request was under way.
        """
        self.require_open(error)
        return map_error(error, url=self.url, model=name, timeout_s=self.timeout.request_s)

    def require_open(self, cause: BaseException | None = None) -> None:
        """Raises RuntimeError if the client was closed."""
        if self.closed:
            raise RuntimeError("the client is closed; make a new Client") from cause

    def _call(self, name: str, call: Callable[[float], _T], attempts: int | None = None) -> _T:
        """Calls with a deadline, and after a lost connection again, as `Retry` or `attempts` says."""
        started = time.monotonic()
        failures = 0
        while True:
            self.require_open()
            try:
                answer = call(self.timeout.connect_s)
            except InferenceServerException as error:
                status = status_of(error)
                connecting = not self._answered
                if status not in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}:
                    self._answered = True
                mapped = map_error(
                    error,
                    url=self.url,
                    model=name,
                    timeout_s=self.timeout.connect_s,
                    setting="connect_s",
                    connecting=connecting,
                )
                failures += 1
                allowed = self.retry.connect_attempts if connecting else attempts or self.retry.attempts
                late = time.monotonic() - started > self.retry.deadline_s
                if status != "UNAVAILABLE" or failures >= allowed or late:
                    raise mapped from error
                delay_s = self.retry.delay_s(failures)
                _log.info("%s; trying again in %.1f s", mapped, delay_s)
                time.sleep(delay_s)
            except ValueError as error:
                self.require_open(error)
                raise
            else:
                self._answered = True
                return answer


def _channel_args(timeout: Timeout, retry: Retry) -> list[tuple[str, int]]:
    connect_ms = int(timeout.connect_s * 1000)
    delay_ms = max(int(retry.max_delay_s * 1000), 100)
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # A refusal names every bad row; gRPC's default would cut it off at 8 KB.
        ("grpc.max_metadata_size", 256 * 1024),
        # gRPC waits up to two minutes before it dials again, and fails our retries unsent in the meantime.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", max(connect_ms, 100)),
        ("grpc.max_reconnect_backoff_ms", delay_ms),
        # Otherwise two clients of one address in a process share a connection, and with it the state above.
        ("grpc.use_local_subchannel_pool", 1),
    ]
