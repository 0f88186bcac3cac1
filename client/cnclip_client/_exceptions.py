"""Everything that the client raises on purpose.

    CnclipError
    ├── TransportError          no answer could be had from the server
    │   ├── ServerUnreachable   nobody (or nobody who speaks Triton's gRPC) answers there
    │   ├── TlsFailed           the server is not whom the client trusts, or speaks no TLS
    │   ├── ServerBusy          the server answers, but takes no more requests for now
    │   └── RequestTimeout      the answer did not come in time
    ├── AccessDenied            the server wants a token, a header or other ones
    ├── ModelNotFound           the server does not have the model
    ├── ModelNotReady           the server has the model, but does not serve it at present
    ├── ModelChanged            another model is served now in the place of the one that was used so far
    ├── CheckpointMismatch      images and texts would be compared across two checkpoints
    ├── BadInput                some of the caller's items cannot be encoded
    ├── BadFile                 a file of the caller's does not hold what it should
    ├── StoreError              a file of an object store or a web server cannot be had
    ├── MissingExtra            a library that only some uses need is not installed
    ├── JobRefused              a batch job would mix with another's output, or run twice at once
    ├── TooManyFailures         more items of a batch job failed than were allowed for
    └── ServerError             the server refused or failed for any other reason

Mistakes in calling (a single string where a list is meant, a closed client) raise `TypeError`, `ValueError`
and `RuntimeError`, as they would anywhere in Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from cnclip_client._blocks import Block
from cnclip_client._info import ModelInfo

__all__ = [
    "AccessDenied",
    "BadFile",
    "BadInput",
    "CheckpointMismatch",
    "CnclipError",
    "JobRefused",
    "MissingExtra",
    "ModelChanged",
    "ModelNotFound",
    "ModelNotReady",
    "RequestTimeout",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "StoreError",
    "TlsFailed",
    "TransportError",
]

_NAMED_IN_MESSAGE = 3


def _rebuild(cls: type[CnclipError], message: str, fields: dict[str, Any]) -> CnclipError:
    error = cls.__new__(cls, message)
    error.__dict__.update(fields)
    return error


class CnclipError(Exception):
    """The root of this package's errors; its message is one line that ends in the way to mend it."""

    def __reduce__(self) -> tuple[Callable[..., CnclipError], tuple[Any, ...]]:
        """Pickles by fields: an error raised in a worker process must reach its parent whole."""
        return _rebuild, (type(self), str(self), self.__dict__)


class TransportError(CnclipError):
    """No answer could be had from the server.

    Attributes:
        url: The address that was asked.
    """

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class ServerUnreachable(TransportError):
    """Nobody answers at the address, or the connection broke and could not be made anew."""


class TlsFailed(TransportError):
    """No connection that both sides trust could be made; it is not tried again."""


class ServerBusy(TransportError):
    """The server's queue stayed full for as long as `Retry` allows."""


class RequestTimeout(TransportError):
    """The answer to one request did not come within its deadline.

    Attributes:
        timeout_s: The deadline, in seconds.
    """

    def __init__(self, message: str, *, url: str, timeout_s: float) -> None:
        super().__init__(message, url=url)
        self.timeout_s = timeout_s


class AccessDenied(CnclipError):
    """The server refused a call for want of a right: a token, a header, or other ones.

    Attributes:
        url: The address that was asked.
        detail: The server's own words.
    """

    def __init__(self, message: str, *, url: str, detail: str) -> None:
        super().__init__(message)
        self.url = url
        self.detail = detail


class ModelNotFound(CnclipError):
    """The server does not have the model.

    Attributes:
        model: The slug, or the full model name, that was asked for.
        available: The slugs that the server serves; None where it does not say.
    """

    def __init__(self, message: str, *, model: str, available: tuple[str, ...] | None) -> None:
        super().__init__(message)
        self.model = model
        self.available = available


class ModelNotReady(CnclipError):
    """The server has the model but does not serve it: still loading, unloaded, or failed to load.

    Attributes:
        model: The full model name.
        reason: What the server says of it; may be empty.
        failed: Whether it failed to load, and will not come by itself.
    """

    def __init__(self, message: str, *, model: str, reason: str, failed: bool = False) -> None:
        super().__init__(message)
        self.model = model
        self.reason = reason
        self.failed = failed


class ModelChanged(CnclipError):
    """The server now serves another model under the name: features of the two must not be mixed.

    Attributes:
        model: The full model name.
        before: What was served when this client first asked.
        after: What is served now, or at another of several servers.
        url: The server's address.
    """

    def __init__(self, *, model: str, before: ModelInfo, after: ModelInfo, url: str = "", servers: int = 1) -> None:
        names = [field.name for field in dataclasses.fields(before)]
        changed = [name for name in names if getattr(before, name) != getattr(after, name)]
        told = ", ".join(
            f"{name} {str(getattr(before, name))[:12]} -> {str(getattr(after, name))[:12]}" for name in changed
        )
        where = f"{model} at {url}" if url else model
        fix = (
            "serve the same at all addresses, or leave this one out"
            if servers > 1
            else "serve the old one again, at every server behind this address, or begin anew with the new one"
        )
        super().__init__(
            f"{where} is not the model that this client began with ({told}): features of both would be mixed; {fix}"
        )
        self.model = model
        self.before = before
        self.after = after
        self.url = url


class CheckpointMismatch(CnclipError):
    """The image and the text model come of different checkpoints; their features cannot be compared.

    Attributes:
        model: The slug.
        image_sha256: The checkpoint of the image model.
        text_sha256: The checkpoint of the text model.
    """

    def __init__(self, *, model: str, image_sha256: str, text_sha256: str) -> None:
        super().__init__(
            f"{model}-image is of checkpoint {image_sha256[:12]}, {model}-text of {text_sha256[:12]}: their "
            "features cannot be compared; build both from one checkpoint, or use each by itself"
        )
        self.model = model
        self.image_sha256 = image_sha256
        self.text_sha256 = text_sha256


class BadInput(CnclipError):
    """Some of the caller's items cannot be encoded; all of them are named, whoever found them.

    Attributes:
        kind: Whether the items are images or texts.
        rows: Index in the caller's sequence -> reason, in rising order.
        encoded: The features of all the other items.
    """

    def __init__(self, *, kind: Literal["image", "text"], rows: Mapping[int, str], encoded: Block) -> None:
        named = "; ".join(f"[{row}] {reason}" for row, reason in list(rows.items())[:_NAMED_IN_MESSAGE])
        more = f"; and {len(rows) - _NAMED_IN_MESSAGE} more" if len(rows) > _NAMED_IN_MESSAGE else ""
        total = encoded.stop - encoded.start
        super().__init__(
            f"{len(rows)} of {total} {kind}s cannot be encoded: {named}{more} "
            "(the others' features are in this error's .encoded; errors='collect' returns them instead)"
        )
        self.kind = kind
        self.rows = dict(rows)
        self.encoded = encoded


class BadFile(CnclipError):
    """A file of the caller's does not hold what it should.

    Attributes:
        path: The file.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class StoreError(CnclipError):
    """A file of an object store or a web server cannot be had, though it may well be there.

    Attributes:
        path: Its address.
        of_all: Whether others of the same place cannot be had either, as where a token has run out; a job then stops,
            to go on another time, rather than have all that is left fail.
        passing: Whether it may be had in a moment, as where a connection broke.
    """

    def __init__(self, message: str, *, path: str, of_all: bool = True, passing: bool = False) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.of_all = of_all
        self.passing = passing


class MissingExtra(CnclipError):
    """A library that only some uses need is not installed.

    Attributes:
        module: The library, as it is imported.
        extra: The extra of this distribution that brings it.
    """

    def __init__(self, *, module: str, extra: str) -> None:
        super().__init__(f"this needs {module}, which is not installed; pip install 'cn-clip-triton[{extra}]'")
        self.module = module
        self.extra = extra


class JobRefused(CnclipError):
    """A batch job would mix its output with another's, or run twice at once.

    Attributes:
        output: The file that it would write.
    """

    def __init__(self, message: str, *, output: str) -> None:
        super().__init__(f"{output}: {message}")
        self.output = output


class TooManyFailures(CnclipError):
    """More items of a batch job failed than were allowed for; what was done is kept.

    Attributes:
        failures: How many failed.
        max_errors: How many were allowed to; None where any number was, and not one item could be read.
        last: The last one's id and reason.
    """

    def __init__(self, *, failures: int, max_errors: int | None, last: str, work: str = "") -> None:
        super().__init__(
            f"none of the first {failures:,} items of this run could be read, the last one: {last}; none is noted as "
            "failed yet: mend what is wrong and run it again, or go on with --max-errors"
            if max_errors is None
            else f"{failures} item{'s' * (failures != 1)} failed, more than the {max_errors} allowed, the last one: "
            f"{last}; what was done is kept: mend the items and remove {work} to begin anew, or go on with a higher "
            "--max-errors"
        )
        self.failures = failures
        self.max_errors = max_errors
        self.last = last


class ServerError(CnclipError):
    """The server refused or failed a request for a reason that is not the items'.

    Attributes:
        model: The full model name; empty where the request was not about one.
        status: gRPC's name of the status, such as `INTERNAL`.
        detail: The server's own words.
    """

    def __init__(self, message: str, *, model: str, status: str, detail: str) -> None:
        super().__init__(message)
        self.model = model
        self.status = status
        self.detail = detail
