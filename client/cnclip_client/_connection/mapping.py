"""The one place where tritonclient's errors become this package's."""

from __future__ import annotations

import os
import re
from typing import Any

from tritonclient.utils import InferenceServerException

from cnclip_client._exceptions import (
    AccessDenied,
    CnclipError,
    ModelNotFound,
    ModelNotReady,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    TlsFailed,
)

__all__ = [
    "is_crowded",
    "is_cut_off",
    "is_death",
    "is_model_death",
    "is_queue_full",
    "is_transient",
    "map_error",
    "status_of",
    "without_secrets",
]

# gRPC goes through these without a word, for localhost too unless no_proxy names it.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

# Words of Triton's core (2.73 and 2.51 alike) in refusals that pass by themselves.
_QUEUE_FULL = ("maximum queue size", "Request timeout expired")
# gRPC's core (1.60 to 1.85) of an answer in plain HTTP: nobody answers so but what stands before Triton.
_IN_HTTP = re.compile(r"Received http2 header with status: (\d{3})")
_TOO_MANY_REQUESTS = "429"
# Its words of an answer without the trailers that end one of gRPC's, as a page to log in is.
_NO_TRAILERS = "Data frame with END_STREAM flag received"
# Our preprocessing's, where it lacks memory: fewer requests at once need less.
_NO_ROOM = "no room at present"
_RESTRICTED = "protocol is restricted"
# Words for a connection that ended while an answer was awaited, as it does when the process at its other end dies:
# gRPC's own, and those of a proxy that lost the server: Envoy's, and gRPC's of a "bad gateway". A server that stops in
# order says "Cancelling all calls".
_CONNECTION_DIED = ("Socket closed", "reset by peer", "Broken pipe")
_DIED_BEHIND = ("connection termination", "remote reset", "HTTP status code 502", "status: 502")
_NEVER_SENT = ("failed to connect", "connections to all backends failing")
# Its words where the process of a Python model has died; whoever watches the server starts it again.
_PROCESS_DIED = "is not healthy"
_NOT_SERVED = ("is not at ready state", "has no available versions", "stopped accepting")

# What gRPC's core (1.60 to 1.85) puts before the one thing that tells why nobody could be reached.
_GRPC_PREAMBLE = re.compile(
    r"^failed to connect to all addresses; last error: [A-Z_]+: (?:\S+: )?(?:Failed to connect to remote host: )?"
)
_REFUSED = "Connection refused"
_NOT_HTTP_2 = "Expected SETTINGS frame as the first frame"

# Words of gRPC's core (1.60 to 1.85) and of BoringSSL in a failed handshake -> what is wrong and how to mend it.
_HANDSHAKE = ("handshake failed", "Hostname Verification Check failed", "missing selected ALPN property")
# A handshake that the other end broke off, or ended for a trouble of its own, as a proxy that stops.
_HANDSHAKE_CUT_OFF = ("SSL_ERROR_ZERO_RETURN", "SSL_ERROR_SYSCALL", "ALERT_INTERNAL_ERROR")
_TLS_PROBLEMS = (
    ("certificate has expired", "its certificate has expired; have it renewed"),
    ("certificate is not yet valid", "its certificate is not valid yet; check both clocks"),
    (
        "Hostname Verification Check failed",
        "its certificate is for another name; use that name in the address, or give it as Tls.server_name "
        "(--tls-server-name)",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate was not signed by an authority that is trusted here; give the right one as Tls.ca_cert "
        "(--ca-cert)",
    ),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS on this port; leave out TLS, or use its TLS port"),
    *(
        (words, "it speaks TLS, but not HTTP/2, which gRPC needs; turn that on there (nginx: http2; haproxy: alpn h2)")
        for words in ("NO_APPLICATION_PROTOCOL", "missing selected ALPN property")
    ),
)

# What a proxy's status says -> what mends it. docs/serving.md has the settings.
_BEHIND = "check that the server behind it runs, and that the proxy speaks gRPC to its gRPC port (8001 by default)"
_PROXY_PROBLEMS = {
    "400": (
        "refuses the request",
        "give a certificate that it trusts, if it wants a client's (Tls.client_cert; --client-cert), or see its log",
    ),
    "413": (
        "takes no request of this size",
        "raise its limit (nginx: client_max_body_size; ingress-nginx: proxy-body-size), or send less at once "
        "(batch_size, --batch-size; Limits.request_bytes)",
    ),
    "429": ("takes no more requests for now", "lower Limits.in_flight (--in-flight), or raise its limit"),
    "500": ("failed by itself", "see its log (nginx: worker_connections), or lower Limits.in_flight (--in-flight)"),
    "502": ("has no answer from the server behind it", _BEHIND),
    "503": ("has no server for a request, or no room for it", f"{_BEHIND}, or lower Limits.in_flight (--in-flight)"),
    "504": (
        "did not wait for the server's answer",
        "raise its timeout (nginx: grpc_read_timeout; haproxy: timeout server) above Timeout.request_s "
        "(--request-timeout), or ask less at once (batch_size; Limits.in_flight, --in-flight)",
    ),
}


def status_of(error: Any) -> str:
    """Returns gRPC's name of an InferenceServerException's status, such as `NOT_FOUND`, or nothing.

    A proxy's 500, which nginx gives as it has no connections left, passes as its 503 does; gRPC calls it UNKNOWN.
    """
    if _http_status(error.message() or "") == "500":
        return "UNAVAILABLE"
    return (error.status() or "").removeprefix("StatusCode.")


def without_secrets(error: Any) -> Any:
    """Returns an InferenceServerException without a proxy's password, which gRPC may quote, taking it for the host."""
    message = error.message() or ""
    for name in _PROXY_VARIABLES:
        secret = os.environ.get(name, "").rpartition("@")[0].rpartition("://")[2]
        for part in filter(None, re.split("[/?#@]", secret)):
            message = message.replace(part, "***")
    if message == (error.message() or ""):
        return error
    return InferenceServerException(message, error.status())


def is_transient(error: Any) -> bool:
    """Tells whether an inference request that failed so may succeed unchanged a moment later.

    CANCELLED is what a server says of the requests under way as it stops; and NOT_FOUND of a model that was
    there a moment ago comes of its reload, or of models unloaded before the port is closed. A handshake that failed,
    but was not cut off, and a protocol that Triton restricts are UNAVAILABLE as well, but stay so. Of what Triton calls
    INTERNAL, the death of a Python model's process passes, once cnclip-serve or a liveness probe has the server started
    again.
    """
    words = error.message() or ""
    if status_of(error) == "INTERNAL":
        return is_model_death(error)
    lasting = _RESTRICTED in words or _is_refused_tls(words)
    return status_of(error) in {"UNAVAILABLE", "CANCELLED", "NOT_FOUND"} and not lasting


def is_death(error: Any) -> bool:
    """Tells whether a request failed so since a process, the server's or a model's, died while it had the request."""
    words = error.message() or ""
    lost = is_cut_off(error) or any(part in words for part in _DIED_BEHIND)
    sent = not any(part in words for part in _NEVER_SENT)
    return is_model_death(error) or (status_of(error) == "UNAVAILABLE" and lost and sent)


def is_cut_off(error: Any) -> bool:
    """Tells whether a connection just ended: what stands between may have done that, and the process lives."""
    return any(part in (error.message() or "") for part in _CONNECTION_DIED)


def is_model_death(error: Any) -> bool:
    """Tells whether the process of a Python model is dead; that of the server lives."""
    return status_of(error) == "INTERNAL" and _PROCESS_DIED in (error.message() or "")


def is_queue_full(error: Any) -> bool:
    """Tells whether the server refused a request since others wait already, or since it has no room for it."""
    detail = error.message() or ""
    return any(words in detail for words in (*_QUEUE_FULL, _NO_ROOM)) or _http_status(detail) == _TOO_MANY_REQUESTS


def is_crowded(error: Any) -> bool:
    """Tells whether fewer requests at once may have passed: a full queue, or a proxy without room or patience."""
    return is_queue_full(error) or _http_status(error.message() or "") in {"500", "503", "504"}


def map_error(
    error: Any,
    *,
    url: str,
    model: str,
    timeout_s: float,
    setting: str = "request_s",
    connecting: bool = False,
) -> CnclipError:
    """Turns an InferenceServerException into the error that says what to do; the caller chains the two.

    Args:
        error: What tritonclient raised or handed to a callback.
        url: The address that was asked.
        model: The full model name; empty where the request was not about one.
        timeout_s: The request's deadline, in seconds.
        setting: The field of `Timeout` that gave it.
        connecting: Whether the server has never answered this client.
    """
    status, detail = status_of(error), (error.message() or "").strip()
    if status == "DEADLINE_EXCEEDED" and not connecting:
        option = " (--request-timeout)" if setting == "request_s" else ""
        return RequestTimeout(
            f"{url} did not answer within {timeout_s:g} s; raise Timeout.{setting}{option}, or ask less of it at "
            "once (batch_size; Limits.in_flight, --in-flight)",
            url=url,
            timeout_s=timeout_s,
        )
    if (answered := _http_status(detail)) is not None or _NO_TRAILERS in detail:
        return _of_a_proxy(url, model, status, answered or "200", detail)
    if is_queue_full(error):
        why = detail[detail.index(_NO_ROOM) :] if _NO_ROOM in detail else "its queue is full"
        return ServerBusy(
            f"{url} refuses requests, {why}; lower Limits.in_flight (--in-flight), or wait for longer "
            "(Retry.patient; --wait-for-server of cnclip extract)",
            url=url,
        )
    if any(words in detail for words in _NOT_SERVED):
        return ModelNotReady(
            f"{model} is not served at present ({detail}); see the server's log, or try again later",
            model=model,
            reason=detail,
        )
    if status == "NOT_FOUND":
        return ModelNotFound(f"{url} has no model {model} ({detail})", model=model, available=None)
    if status in {"UNAUTHENTICATED", "PERMISSION_DENIED"} or _RESTRICTED in detail:
        return AccessDenied(
            f"{url} denies access ({detail or status}); give the token or header that it wants (Credentials; "
            "--token-file, --header)",
            url=url,
            detail=detail,
        )
    if _is_refused_tls(detail):
        problem = next((told for words, told in _TLS_PROBLEMS if words in detail), f"{detail}; see the server's log")
        return TlsFailed(f"no TLS connection to {url}: {problem}", url=url)
    if status in {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}:
        return ServerUnreachable(_unreachable(url, status, detail, timeout_s, connecting), url=url)
    return ServerError(
        f"{model or url}: the server failed the request ({status}: {detail}); see the server's log",
        model=model,
        status=status,
        detail=detail,
    )


def _http_status(detail: str) -> str | None:
    """Returns the status of an answer in plain HTTP, such as `502`; None of an answer of gRPC's."""
    found = _IN_HTTP.search(detail)
    return found[1] if found else None


def _of_a_proxy(url: str, model: str, status: str, answered: str, detail: str) -> CnclipError:
    """Returns what is wrong where not Triton answered, but what stands before it, or in its place."""
    if answered in {"401", "403"}:
        return AccessDenied(
            f"what stands before Triton at {url} denies access (HTTP {answered}); give the token or header that it "
            "wants (Credentials; --token-file, --header)",
            url=url,
            detail=detail,
        )
    if answered not in _PROXY_PROBLEMS:
        message = (
            f"what answers at {url} serves no gRPC there (HTTP {answered}); check the address, and that what stands "
            "before Triton passes gRPC on (nginx: grpc_pass, at location /)"
        )
        return ServerError(message, model=model, status=status, detail=detail)
    problem, fix = _PROXY_PROBLEMS[answered]
    message = f"what stands before Triton at {url} {problem} (HTTP {answered}); {fix}"
    if answered == _TOO_MANY_REQUESTS:
        return ServerBusy(message, url=url)
    if status == "UNAVAILABLE":
        return ServerUnreachable(message, url=url)
    return ServerError(message, model=model, status=status, detail=detail)


def _is_refused_tls(detail: str) -> bool:
    """Tells whether a handshake failed for what the two are, such as a certificate, which no waiting mends."""
    cut_off = any(words in detail for words in _HANDSHAKE_CUT_OFF)
    return any(words in detail for words in _HANDSHAKE) and not cut_off


def _unreachable(url: str, status: str, detail: str, timeout_s: float, connecting: bool) -> str:
    if not connecting:
        return (
            f"lost the connection to {url} ({detail}); check that the server still runs, and the timeouts of what "
            "stands before it"
        )
    why = f"no answer within {timeout_s:g} s" if status == "DEADLINE_EXCEEDED" else _GRPC_PREAMBLE.sub("", detail)
    if _NOT_HTTP_2 in detail:
        why = "what is there does not speak HTTP/2"
    proxy = next((f"{name}={_shown(os.environ[name])}" for name in _PROXY_VARIABLES if os.environ.get(name)), None)
    through = f"; gRPC goes through the proxy {proxy} unless no_proxy names the host" if proxy else ""
    # Where nobody listens, nobody wants TLS.
    tls = "" if _REFUSED in why else ", and whether it wants TLS or a client's certificate"
    return (
        f"no Triton server answers at {url} ({why}); check that it runs, and that this is its gRPC port "
        f"(8001 by default, not HTTP's 8000){tls}{through}"
    )


def _shown(proxy: str) -> str:
    """Returns a proxy's address without the name and password that may stand in it; the last @ ends them."""
    return re.sub(r"^([a-zA-Z]+://)?.*@", r"\1***@", proxy, flags=re.DOTALL)
