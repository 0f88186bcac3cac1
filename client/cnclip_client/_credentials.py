"""Who the client is, and whom it trusts: TLS, tokens and headers, kept out of everything that is printed."""

from __future__ import annotations

import contextlib
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import grpc  # type: ignore[import-untyped]

from cnclip_client._exceptions import BadFile

__all__ = ["Credentials", "Tls", "channel_credentials", "headers_of", "is_local"]

_File: TypeAlias = str | PathLike[str]

# What gRPC takes; it would otherwise refuse them with a message that quotes all of them.
_HEADER_NAME = re.compile(r"(?!grpc-)(?!.*-bin$)[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_LOCAL = re.compile(
    r"(unix(-abstract)?:.*|((dns:(///)?|ipv4:))?(localhost|127(\.\d+){3}):\d+|((dns:(///)?|ipv6:))?\[::1\]:\d+)"
)
# Tokens in files are replaced while a job runs, as Kubernetes does once an hour.
_TOKEN_FILE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM format; they are read once, when a `Client` is made.

    Attributes:
        ca_cert: The authorities that may have signed the server's certificate; without it the public ones that
            come with gRPC, or those in the file that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
        client_cert: This client's own certificate, and those between it and its authority (mutual TLS).
        client_key: Its private key, not encrypted.
        server_name: The name in the server's certificate, where it is not that of the address.

    Raises:
        ValueError: One of `client_cert` and `client_key` is there without the other.
    """

    ca_cert: _File | None = None
    client_cert: _File | None = None
    client_key: _File | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("mutual TLS takes a certificate and its key; give client_cert and client_key both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a server asks of its clients. Secrets are in no `repr`, no message and no log, and are not pickled.

    Attributes:
        tls: How to speak TLS; None speaks plaintext.
        token: Sent as `authorization: Bearer TOKEN`.
        token_file: A file with the token instead; read again while a job runs, so that it may be replaced.
        headers: Sent with every request, such as that of Triton's `--grpc-restricted-protocol`. All of them are
            taken for secrets.
        allow_plaintext: Whether secrets may go to another machine without TLS, where everyone on the way can
            read them.

    Raises:
        ValueError: A header or the token is none that HTTP can carry; or the token is given twice.
    """

    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    token_file: _File | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise ValueError("there are a token and a token_file; give one of them")
        if self.token is not None:
            _check_token(self.token, "the token")
        headers = {name.lower(): value for name, value in self.headers.items()}
        for number, (name, value) in enumerate(headers.items(), 1):
            if not _HEADER_NAME.fullmatch(name):
                # Not quoted: a colon at the wrong place makes a secret the name.
                raise ValueError(
                    f"the name of header {number} is none; use letters, digits, - and _ before the colon, without "
                    "grpc- or -bin"
                )
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"the value of header {name} has other characters than printable ASCII; remove them")
        if "authorization" in headers and self.has_token:
            raise ValueError("there are a token and an authorization header; give one of them")
        object.__setattr__(self, "headers", MappingProxyType(headers))

    def __reduce__(self) -> NoReturn:
        raise TypeError("Credentials may hold secrets and are not pickled; make them anew in each process")

    @property
    def has_token(self) -> bool:
        """Whether a token is sent."""
        return self.token is not None or self.token_file is not None

    @property
    def has_secrets(self) -> bool:
        """Whether something is sent that others must not read."""
        return self.has_token or bool(self.headers)


def is_local(url: str) -> bool:
    """Tells whether an address is of this machine: loopback or a Unix socket."""
    return _LOCAL.fullmatch(url) is not None


def channel_credentials(tls: Tls) -> Any:
    """Reads the files and returns gRPC's own object, which does not show them.

    Raises:
        BadFile: One cannot be read, is not PEM, or the key is not the certificate's.
    """
    ca_cert, client_cert, client_key = (
        None if path is None else _read(path) for path in (tls.ca_cert, tls.client_cert, tls.client_key)
    )
    # gRPC does not say what is wrong with a file; OpenSSL does.
    context = ssl.create_default_context()
    if tls.ca_cert is not None:
        try:
            context.load_verify_locations(tls.ca_cert)
        except ssl.SSLError as error:
            raise BadFile(
                "holds no certificate in PEM format; check that it is the right file", path=str(tls.ca_cert)
            ) from error
    if tls.client_cert is not None and tls.client_key is not None:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(tls.client_cert, tls.client_key, password=lambda: b"")
        except (ssl.SSLError, ValueError) as error:
            path, problem = _key_problem(tls.client_cert, tls.client_key, error)
            raise BadFile(problem, path=str(path)) from error
    return grpc.ssl_channel_credentials(ca_cert, client_key, client_cert)


def _key_problem(cert: _File, key: _File, error: Exception) -> tuple[_File, str]:
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return key, f"is not the private key of {cert}; give the two that were made together"
    if b"ENCRYPTED" in _read(key):
        return key, "is encrypted; decrypt it with openssl pkey, and let nobody else read it"
    if b"PRIVATE KEY" not in _read(key):
        return key, "holds no private key in PEM format; check that it is the right file"
    return cert, "holds no certificate in PEM format, or its key none that can be read; check both files"


def headers_of(credentials: Credentials) -> Callable[[], dict[str, str] | None]:
    """Returns what gives the headers of the next request, None if there are none.

    Raises:
        BadFile: The token's file cannot be read or holds no token.
    """
    fixed = dict(credentials.headers)
    path = credentials.token_file
    if path is None:
        if credentials.token is not None:
            fixed["authorization"] = f"Bearer {credentials.token}"
        return lambda: fixed or None
    token, read_at = _read_token(path), time.monotonic()

    def current() -> dict[str, str]:
        nonlocal token, read_at
        if time.monotonic() - read_at > _TOKEN_FILE_S:
            read_at = time.monotonic()
            # It may be in the middle of being replaced; the server tells if the old one is not good any more.
            with contextlib.suppress(BadFile):
                token = _read_token(path)
        return {**fixed, "authorization": f"Bearer {token}"}

    return current


def _read_token(path: _File) -> str:
    try:
        token = _read(path).decode("ascii").strip()
        _check_token(token, "it")
    except ValueError:
        # Not chained: a UnicodeDecodeError holds what it could not decode.
        raise BadFile("holds no token; write it there as one line of ASCII", path=str(path)) from None
    return token


def _check_token(token: str, what: str) -> None:
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError(f"{what} is empty or has other characters than printable ASCII; write the token alone")


def _read(path: _File) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadFile(
            f"cannot be read ({error.strerror}); check the path and who may read it", path=str(path)
        ) from error
