"""What the many libraries below fsspec raise, as this package's errors: each says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnclip_client._exceptions import BadFile, CnclipError, MissingExtra, StoreError

__all__ = ["code_of", "is_unanswered", "told_remote"]

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken")
_WHO = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for a store that is not "
    "Amazon's; FSSPEC_S3_ANON=true for a public one",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`; FSSPEC_GS_TOKEN=anon for a "
    "public one",
    "hf": "HF_TOKEN, or `hf auth login`",
}
_GONE = (404, 410)
_BUSY = (408, 425, 429)  # of the 4xx, those that may be answered otherwise in a moment


@contextmanager
def told_remote(url: str) -> Iterator[None]:
    """Turns whatever is raised of a remote file into an error that names it.

    Args:
        url: The file, folder or pattern.

    Raises:
        BadFile: It is not there.
        StoreError: It cannot be had, at least not now or not by us.
        MissingExtra: A library is missing.
    """
    try:
        yield
    except CnclipError:
        raise
    except ImportError as error:
        raise MissingExtra(module=error.name or _library(str(error)), extra="remote") from error
    except ValueError as error:
        raise BadFile(f"is no address that can be read: {_words(error)}", path=url) from error
    # OSError, and those of botocore, aiohttp and the like, which share no root.
    except Exception as error:
        raise _told(url, error) from error


def _told(url: str, error: Exception) -> CnclipError:
    scheme, _, rest = url.partition("://")
    scheme = {"s3a": "s3", "gcs": "gs", "http": "https"}.get(scheme, scheme)
    code, status = code_of(error), getattr(error, "status", None)
    known = _WHO.get(scheme)
    who = f"set {known}" if known else "see the documentation of fsspec's package for this kind of address"
    # A list of addresses may name any machine: what one of them says is nothing of the others.
    of_all = scheme != "https"
    if isinstance(error, FileNotFoundError) or status in _GONE:
        bucket = rest.partition("/")[0]
        what = f"there is no bucket {bucket}" if code == "NoSuchBucket" else "there is nothing"
        return BadFile(f"{what}; check the name, and the store that is asked", path=url)
    if type(error).__name__ == "ParamValidationError":  # botocore's, before it asks: such as a bucket of no such name
        return BadFile(f"is no address that can be read: {_words(error)}", path=url)
    if code in _EXPIRED:
        return StoreError(f"the store's token has run out ({code}); get a new one and run it again", path=url)
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"):
        return StoreError(f"there are no credentials for the store; {who}", path=url)
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "400") or status == 401:
        # To a question about a file alone, S3 has no words, and a token that has run out looks like this too.
        words = f"the store refuses the credentials, or they have run out ({code or status})"
        return StoreError(f"{words}; {who}", path=url, of_all=of_all)
    if isinstance(error, PermissionError) or status == 403:
        words = f"the store forbids it ({_words(error)})"
        return StoreError(f"{words}; have it allowed, or {who}", path=url, of_all=False)
    status = status or _response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    # S3's words for a timeout come with a 400, too.
    is_refused = isinstance(status, int) and 400 <= status < 500 and not isinstance(error, TimeoutError)
    if is_refused and status not in (*_BUSY, 403):
        return StoreError(f"the store refuses it ({_words(error)}); check the address", path=url, of_all=False)
    return StoreError(
        f"the store cannot be had ({_words(error)}); see that it can be reached, and run it again",
        path=url,
        of_all=of_all,
        passing=True,
    )


def is_unanswered(error: StoreError) -> bool:
    """Whether nobody answered at all, which may be for want of a network here."""
    return error.passing and getattr(error.__cause__, "status", None) is None


def code_of(error: BaseException | None) -> str:
    """Returns the store's own name of what is wrong."""
    return str(_response_of(error).get("Error", {}).get("Code", ""))


def _response_of(error: BaseException | None) -> dict[str, Any]:
    """Returns what a store answered, which is in botocore's error behind the one that is raised."""
    seen = 0
    while error is not None and seen < 8:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return response
        error, seen = error.__cause__ or error.__context__, seen + 1
    return {}


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _library(message: str) -> str:
    """Returns what fsspec asks to install, such as `s3fs` of "Install s3fs to access S3"."""
    words = message.split()
    return words[words.index("install") + 1] if "install" in words[:-1] else next(iter(words[1:2]), message)
