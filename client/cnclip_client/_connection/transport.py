"""The connection: the few calls of Triton's gRPC service that the client needs, with errors mapped."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from cnclip_client._connection.mapping import is_transient, map_error, status_of, without_secrets
from cnclip_client._connection.wire import Tensors, rows_input
from cnclip_client._credentials import Credentials, channel_credentials, headers_of, is_local
from cnclip_client._exceptions import CnclipError
from cnclip_client._forks import note_use, require_uncut
from cnclip_client._settings import Retry, Timeout

__all__ = ["Listed", "Transport", "check_url", "is_worth_asking_again", "require_no_secret"]

_T = TypeVar("_T")
_CLOSE_S = 2.0
_LAST_PORT = 65_535
# Balancers and firewalls forget a connection that is idle, some after four minutes and without a word: the next call
# would wait for half of its deadline. gRPC closes it when the last call is between once and twice so long ago.
_IDLE_MS = 100_000

# What gRPC itself resolves; any other `scheme:` is taken for a host and fails with a puzzling message.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


class Listed(NamedTuple):
    """One line of the server's repository index; `state` is empty for a model that was never loaded."""

    name: str
    version: str
    state: str
    reason: str


def require_no_secret(url: str) -> None:
    """Raises ValueError for `name:password@host:port`, without quoting it: every message and log shows addresses."""
    if "@" in url and not url.startswith(("unix:", "unix-abstract:")):
        raise ValueError(
            f"an address has something before the @ of @{url.rpartition('@')[2]}; write host:8001 alone, and give a "
            "token or header otherwise (Credentials; --token-file, --header)"
        )


def check_url(url: str) -> str:
    """Returns the address unchanged.

    Raises:
        ValueError: It is not `host:port`, or has a name or a password in it.
    """
    require_no_secret(url)
    if "://" in url and not url.startswith(_GRPC_SCHEMES):
        raise ValueError(f"{url!r} is not host:port; leave out the {url.split('://')[0]}://")
    if any(mark in url for mark in "：，"):
        raise ValueError(f"{url!r} has a full-width ： or ，; write host:8001 with the : and , of ASCII")
    if url.startswith(_GRPC_SCHEMES):
        return url
    if not (port := re.search(r"(?:^|[^:]):(\d+)$", url)):
        raise ValueError(f"{url!r} has no port; write host:8001 (Triton's gRPC port)")
    if url.startswith(":"):
        raise ValueError(f"{url!r} names no host; write localhost{url} for this machine")
    if not 0 < int(port[1]) <= _LAST_PORT:  # gRPC would ask at what remains of it in 16 bits
        raise ValueError(f"{url!r}: {port[1]} is not a port; write host:8001 (Triton's gRPC port)")
    return url


class Transport:
    """A gRPC channel to one server. It connects at the first call, and again by itself after a loss.

    Attributes:
        url: The server's address.
        timeout: Deadlines.
        closed: Whether `close` was called.
        answered: Whether the server has ever answered a question.
    """

    def __init__(
        self,
        url: str,
        timeout: Timeout | None = None,
        retry: Retry | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Prepares a connection; nothing is sent yet.

        Args:
            url: The server's gRPC address.
            timeout: Deadlines; the defaults are those of `Timeout`.
            retry: Its longest wait is that before a lost connection is dialled again.
            credentials: What the server asks for; without them it is plaintext.

        Raises:
            ValueError: The address is not `host:port`, or secrets would go to another machine in plaintext.
            BadFile: A file of the credentials cannot be used.
            RuntimeError: This process was forked from one that has a channel.
        """
        self.url = check_url(url)
        timeout, retry, credentials = timeout or Timeout(), retry or Retry(), credentials or Credentials()
        if credentials.has_secrets and not credentials.tls and not credentials.allow_plaintext and not is_local(url):
            raise ValueError(
                f"the token or header would go to {url} in plaintext, for everyone on the way to read; use TLS "
                "(Credentials.tls, --tls), or allow it (allow_plaintext, --allow-plaintext)"
            )
        self._headers = headers_of(credentials)
        self.timeout = timeout
        self.closed = False
        self.answered = False
        tls = credentials.tls
        require_uncut()
        note_use()
        self._client = InferenceServerClient(
            url,
            creds=channel_credentials(tls) if tls else None,
            channel_args=_channel_args(url, timeout, retry, tls.server_name if tls else None),
        )

    def close(self) -> None:
        """Closes the channel; requests under way end as cancelled."""
        if not self.closed:
            self.closed = True
            # gRPC waits for ever for a request that a KeyboardInterrupt cut off after its sending, before it was noted.
            closing = threading.Thread(target=self._client.close, daemon=True)
            closing.start()
            closing.join(_CLOSE_S)

    def config(self, name: str, version: str) -> tuple[dict[str, str], int]:
        """Returns the parameters and the `max_batch_size` of one version of a model.

        Args:
            name: The model's full name.
            version: The version asked for.

        Raises:
            ModelNotFound: The server has no such model; `.available` is not yet looked up.
            ModelNotReady: It does not serve the model at present.
            TransportError: No answer.
            ServerError: Anything else.
        """
        answer = self._call(
            name,
            lambda timeout_s: self._client.get_model_config(name, version, self._headers(), client_timeout=timeout_s),
        )
        config = answer.config
        return {key: value.string_value for key, value in config.parameters.items()}, config.max_batch_size

    def latest_version(self, name: str) -> str:
        """Returns the highest version that the server serves of a model. Raises as `config` does."""
        answer = self._call(
            name,
            lambda timeout_s: self._client.get_model_metadata(name, headers=self._headers(), client_timeout=timeout_s),
        )
        return str(max((int(version) for version in answer.versions), default=1))

    def index(self) -> list[Listed]:
        """Returns what the server's repository holds.

        Raises:
            TransportError: No answer.
            ServerError: Anything else: the server may be started with this call restricted.
        """
        answer = self._call(
            "",
            lambda timeout_s: self._client.get_model_repository_index(self._headers(), client_timeout=timeout_s),
        )
        return [Listed(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]

    def ask_text(self, name: str, version: str, tensors: Tensors, payload: bytes) -> str:
        """Sends one row and waits for its output, a string.

        Args:
            name: The model's full name.
            version: The version asked for.
            tensors: The input and the output.
            payload: The row.

        Raises:
            CnclipError: As `config` does; where the model has no such output, too.
        """
        result = self._call(
            name,
            lambda timeout_s: self._client.infer(
                name,
                [rows_input(tensors, [payload])],
                model_version=version,
                outputs=[InferRequestedOutput(tensors.output)],
                headers=self._headers(),
                client_timeout=timeout_s,
            ),
        )
        return bytes(result.as_numpy(tensors.output).reshape(-1)[0]).decode()

    def send(
        self,
        name: str,
        version: str,
        tensors: Tensors,
        payloads: Sequence[bytes],
        done: Callable[[Any, Any], None],
    ) -> Any:
        """Sends one inference request and returns at once.

        Args:
            name: The model's full name.
            version: The version asked for.
            tensors: The input and the output.
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
                [rows_input(tensors, payloads)],
                lambda result, error: done(result, None if error is None else without_secrets(error)),
                model_version=version,
                outputs=[InferRequestedOutput(tensors.output)],
                headers=self._headers(),
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
        """Raises RuntimeError if the client was closed, or cut off by a fork."""
        require_uncut()
        if self.closed:
            raise RuntimeError("the client is closed; make a new Client") from cause

    def _call(self, name: str, call: Callable[[float], _T]) -> _T:
        """Calls once, with a deadline."""
        self.require_open()
        try:
            answer = call(self.timeout.connect_s)
        except InferenceServerException as raised:
            error = without_secrets(raised)
            self.require_open(error)
            connecting = not self.answered
            if status_of(error) not in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}:
                self.answered = True
            raise map_error(
                error,
                url=self.url,
                model=name,
                timeout_s=self.timeout.connect_s,
                setting="connect_s",
                connecting=connecting,
            ) from error
        except ValueError as error:
            self.require_open(error)
            raise
        self.answered = True
        return answer


def is_worth_asking_again(error: CnclipError) -> bool:
    """Tells whether a question that failed so may be answered a moment later: there was no connection."""
    cause = error.__cause__
    return isinstance(cause, InferenceServerException) and status_of(cause) == "UNAVAILABLE" and is_transient(cause)


def _channel_args(url: str, timeout: Timeout, retry: Retry, server_name: str | None) -> list[tuple[str, int | str]]:
    connect_ms, request_ms = int(timeout.connect_s * 1000), int(timeout.request_s * 1000)
    delay_ms = max(int(retry.max_delay_s * 1000), 100)
    arguments: list[tuple[str, int | str]] = [
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
        ("grpc.client_idle_timeout_ms", _IDLE_MS),
        # A peer that vanished without a word is noticed by a ping that nobody answers, in half of a request's deadline.
        # A server that has sent nothing for its `--grpc-http2-min-recv-ping-interval-without-data` (300 s) bears three
        # pings and hangs up at the fourth: more than fit into a deadline.
        ("grpc.keepalive_time_ms", max(request_ms // 3, 100)),
        ("grpc.keepalive_timeout_ms", max(request_ms // 6, 100)),
        # gRPC's own pings, with which it measures bandwidth, hold up that one, for a minute if nobody answers.
        ("grpc.http2.ping_timeout_ms", max(request_ms // 6, 100)),
    ]
    if url.startswith("dns:"):
        # gRPC would otherwise keep to the first address of a name that has several.
        arguments.append(("grpc.lb_policy_name", "round_robin"))
    if is_local(url):
        # gRPC asks a proxy for localhost too unless no_proxy names it.
        arguments.append(("grpc.enable_http_proxy", 0))
    if server_name is not None:
        arguments.append(("grpc.ssl_target_name_override", server_name))
    return arguments
