"""All that the gateway answers with instead of what was asked for, in the form of OpenAI's API.

    GatewayError            an answer with a status and `{"error": {"message", "type", "param", "code"}}`
    ├── BadRequest          the caller's mistake: 400, and 401, 404, 405, 413, 415
    └── NotNow              it may well go another time: 408, 503, 504

What the client raises becomes one of these in `told`. A caller is told what to do; addresses and paths of what stands
behind the gateway are only logged.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from cnclip_client import (
    AccessDenied,
    CnclipError,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    RequestTimeout,
    ServerBusy,
    TransportError,
)

__all__ = ["BadRequest", "GatewayError", "NotNow", "told"]

_log = logging.getLogger(__name__)
_AGAIN_S = 2
_SHOWN = 100  # characters of what a caller named


class GatewayError(Exception):
    """The root of this package's errors: what is answered instead of what was asked for.

    Attributes:
        status: Of HTTP.
        message: One line that ends in the way to mend it.
        kind: OpenAI's `type`.
        usual_status: What `status` is unless another is given.
        param: The field that is wrong.
        code: A word for programs.
        headers: What is sent with it.
    """

    kind = "server_error"
    usual_status = 500

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status or self.usual_status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> bytes:
        """Returns it as JSON."""
        form: dict[str, Any] = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": form}, ensure_ascii=False).encode("utf-8", "backslashreplace")


class BadRequest(GatewayError):
    """The request is not what it should be."""

    kind = "invalid_request_error"
    usual_status = 400


class NotNow(GatewayError):
    """The request may be right, and cannot be answered at present."""

    def __init__(self, message: str, *, status: int = 503, code: str) -> None:
        super().__init__(message, status=status, code=code, headers={"Retry-After": str(_AGAIN_S)})


# What the client raises that may go another time; the first that fits counts, since two are TransportErrors.
_NOT_NOW: tuple[tuple[type[CnclipError], int, str, str], ...] = (
    (RequestTimeout, 504, "timeout", "the model server was too slow; send fewer items, or try again"),
    (ServerBusy, 503, "server_busy", "the model server is busy; try again"),
    (ModelNotReady, 503, "model_not_ready", "the model is not loaded at present; try again"),
    (ModelChanged, 503, "model_changed", "the model was replaced just now; try again"),
    (TransportError, 503, "server_unreachable", "the model server cannot be reached at present; try again"),
)


def told(error: CnclipError) -> GatewayError:
    """Returns what a caller is told of an error of the client's; what stands behind the gateway is told to the log."""
    if isinstance(error, ModelNotFound):
        return not_found(error.model.removesuffix("-image").removesuffix("-text"), error.available or ())
    _log.warning("%s: %s", type(error).__name__, error)
    for kind, status, code, message in _NOT_NOW:
        if isinstance(error, kind):
            return NotNow(message, status=status, code=code)
    if isinstance(error, AccessDenied):
        return GatewayError(
            "the model server does not let the gateway in; whoever runs it finds why in its log",
            status=502,
            code="access_denied",
        )
    return GatewayError(
        "the model server failed; whoever runs the gateway finds why in its log", status=502, code="server_failed"
    )


def not_found(model: str, available: tuple[str, ...]) -> BadRequest:
    """Returns the error of a model that there is not."""
    served = f"this serves {', '.join(available)}" if available else "this serves none at present"
    named = repr(model if len(model) <= _SHOWN else f"{model[:_SHOWN]}...")
    return BadRequest(f"there is no model {named}; {served}", status=404, code="model_not_found", param="model")
