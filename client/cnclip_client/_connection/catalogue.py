"""Which slugs a server serves, and what to say where the one asked for is not among them."""

from __future__ import annotations

from collections.abc import Iterable

from cnclip_client._connection.endpoint import Urls
from cnclip_client._connection.endpoints import Endpoints
from cnclip_client._connection.transport import Listed, Transport
from cnclip_client._credentials import Credentials
from cnclip_client._exceptions import CnclipError, ModelNotFound, ModelNotReady
from cnclip_client._settings import Retry, Timeout

__all__ = ["explain_not_found", "served_models", "slugs"]

_SUFFIXES = ("-image", "-text", "-image-encoder", "-text-encoder")


def served_models(
    url: Urls = "localhost:8001",
    *,
    timeout: Timeout | None = None,
    retry: Retry | None = None,
    credentials: Credentials | None = None,
) -> tuple[str, ...]:
    """Returns the slugs that a server serves at present, sorted: an image or a text model is enough, or its encoder.

    With `Retry.start_s`, as of `Retry.patient`, one that loads yet is waited for.

    Args:
        url: The server's gRPC address, `host:port`; of several, the first that answers is asked.
        timeout: Deadlines; the defaults are those of `Timeout`.
        retry: When to try again; the defaults are those of `Retry`.
        credentials: What the server asks for; without them it is plaintext.

    Raises:
        ValueError: The address is not `host:port`, or secrets would go to another machine in plaintext.
        BadFile: A file of the credentials cannot be used.
        TransportError: No answer.
        ModelNotReady: One still loads after that time.
        AccessDenied: The server does not let its repository be listed.
    """
    endpoints = Endpoints(url, timeout, retry, credentials)

    def listed(transport: Transport) -> list[Listed]:
        found = transport.index()
        if endpoints.retry.start_s:
            _require_loaded(transport, found)
        return found

    try:
        return slugs(endpoints.ask(listed))
    finally:
        endpoints.close()


def slugs(listed: Iterable[Listed]) -> tuple[str, ...]:
    """Returns the slugs with an ensemble or an encoder that is ready, sorted."""
    ready = (entry.name for entry in listed if entry.state == "READY")
    return tuple(sorted({name.removesuffix(end) for name in ready for end in _SUFFIXES if name.endswith(end)}))


def _require_loaded(transport: Transport, listed: list[Listed]) -> None:
    """Raises ModelNotReady while a tower loads yet, or while there is none but that may load yet."""
    towers = [entry for entry in listed if entry.name.endswith(_SUFFIXES)]
    waiting = [entry for entry in towers if entry.state == "LOADING"]
    if not slugs(listed):
        waiting += [entry for entry in towers if not _has_failed(entry)]
    if waiting:
        name = waiting[0].name
        raise ModelNotReady(f"{name} is not loaded yet at {transport.url}", model=name, reason=waiting[0].reason)


def _has_failed(entry: Listed) -> bool:
    """Tells whether a model failed to load, rather than that it loads, or was not loaded, or was unloaded."""
    return entry.state == "UNAVAILABLE" and entry.reason not in ("", "unloaded")


def explain_not_found(transport: Transport, slug: str, error: ModelNotFound | ModelNotReady) -> CnclipError:
    """Returns the error to raise where a server says that it has no such model, or none that is ready.

    Triton says either of a model that failed to load as well; its repository index tells them apart, and what
    else it has, where the server lets it be read.

    Args:
        transport: The connection.
        slug: The slug that was asked for.
        error: What the server said; its `model` is the ensemble's full name.
    """
    try:
        listed = transport.index()
    except CnclipError:
        if isinstance(error, ModelNotReady):
            return error
        return ModelNotFound(
            f"{error}; check the model's name (the server does not let its models be listed)",
            model=error.model,
            available=None,
        )
    entries = [entry for entry in listed if entry.name == error.model]
    if entries and not any(entry.state == "READY" for entry in entries):
        reason = next((entry.reason for entry in entries if entry.reason), "it is not loaded")
        return ModelNotReady(
            f"{error.model} is in {transport.url}'s repository but not served: {reason}; mend or load it",
            model=error.model,
            reason=reason,
            failed=any(map(_has_failed, entries)),
        )
    if isinstance(error, ModelNotReady):
        return error
    available = slugs(listed)
    if entries:
        versions = ", ".join(sorted(entry.version for entry in entries if entry.state == "READY"))
        fix = f"of it the server has version {versions}"
    elif any(entry.name == f"{error.model}-encoder" and entry.state == "READY" for entry in listed):
        what = "pixels" if error.model.endswith("-image") else "token ids"
        fix = f'it has its encoder alone, which takes {what}: have this machine prepare them (prepare="client", '
        fix += "--prepare client)"
    elif slug in available:
        fix = f"of {slug} the server has the other tower only"
    elif available:
        fix = f"it serves {', '.join(available)}"
    else:
        fix = "it serves no Chinese-CLIP model; build one with cnclip-build"
    return ModelNotFound(f"{error}; {fix}", model=error.model, available=available)
