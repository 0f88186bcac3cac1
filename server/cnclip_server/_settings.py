"""What a server is started with, and what of it its caller may not ask for."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cnclip_server._api import Api
from cnclip_server._errors import SettingError
from cnclip_server._ports import Ports

HTTP_RESTRICTION = "--http-restricted-api"

# Flags of where the server listens. This package must know it, to ask how the server does and to tell where it is.
_PORTS = ("--grpc-port", "--http-port", "--metrics-port")
_ADDRESSES = ("--grpc-address", "--http-address", "--metrics-address")
_ANY_ADDRESS = "0.0.0.0"  # noqa: S104
_ALLOW_HTTP = "--allow-http"


@dataclass(frozen=True)
class Tls:
    """How gRPC is encrypted; Triton can't encrypt HTTP, which then stays on loopback.

    Attributes:
        certificate: The server's certificate chain, PEM.
        key: Its private key, PEM.
        client_ca: If given, clients must show a certificate that one of these, PEM, has signed (mutual TLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        """Refuses files that can't be used, of which Triton would say that the port is in use.

        Raises:
            SettingError: Naming the file.
        """
        for path in filter(None, (self.certificate, self.key, self.client_ca)):
            try:
                text = path.read_text(encoding="ascii")
            except (OSError, ValueError) as error:
                raise SettingError(f"{path} can't be read ({error}); name a PEM file") from error
            if "-----BEGIN" not in text:
                raise SettingError(f"{path} is no PEM file: it has no line that starts with -----BEGIN")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With a password that none is, so that nobody is asked for one.
            context.load_cert_chain(self.certificate, self.key, password=lambda: "-")
        except (OSError, ValueError) as error:
            raise SettingError(
                f"{self.certificate} and {self.key} can't be used together ({error}); name a certificate, those that "
                "it rests on behind it, and its own key without a passphrase"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise SettingError(
                    f"{self.client_ca} can't be used ({error}); name a PEM file of certificates"
                ) from None

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes when a file is replaced, links followed; None for one that is not there at this moment."""
        return tuple(map(_stamp, (self.certificate, self.key, self.client_ca)))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = None if path is None else path.stat()
    except OSError:
        return None
    return None if stat is None else (stat.st_ino, stat.st_mtime_ns, stat.st_size)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server is started with, as `TritonServer` has it from its caller; a port may still be 0."""

    repository: Path
    host: str
    ports: Ports
    binary: Path | None
    extra_args: Sequence[str]
    tls: Tls | None
    admin_key: str | None
    startup_timeout_s: float
    log_file: Path | None
    log_limit_bytes: int

    @property
    def keys(self) -> list[str]:
        """The keys to restricted APIs among all this, which no message may hold."""
        own = (argument.rpartition("=")[2] for argument in self.extra_args if "-restricted-" in argument)
        return [key for key in (self.admin_key, *own) if key]

    @property
    def http_host(self) -> str:
        """The address that HTTP listens on."""
        return self.host if self.tls is None else "127.0.0.1"

    def api(self) -> Api:
        """Where the server answers us."""
        http, metrics = reachable(self.http_host), reachable(self.host)
        return Api(http, self.ports.http, metrics, self.ports.metrics, restriction_headers(self.extra_args))


def reachable(host: str) -> str:
    """The address to reach a server at that listens on one, or on all of them."""
    return "127.0.0.1" if host == _ANY_ADDRESS else host


def check_flags(extra_args: Sequence[str], grpc_at: str, http_at: str) -> None:
    """Refuses flags with which the server would be where nobody asks it, and count as not ready until its time is over.

    Args:
        extra_args: The flags.
        grpc_at: The address that is told for gRPC and the metrics.
        http_at: That at which it is asked whether it is ready.

    Raises:
        SettingError: Naming the flag.
    """
    for flag, value in _flag_values(extra_args):
        if flag in _PORTS:
            raise SettingError(f"{flag} must be known here: give it to cnclip-serve itself, before `--`")
        asked_at = http_at if "http" in flag else grpc_at
        if flag in _ADDRESSES and value not in (asked_at, _ANY_ADDRESS) and _address(value) != _address(asked_at):
            raise SettingError(f"{flag}={value} would be where the server is not asked: give --host, before `--`")
        if flag == _ALLOW_HTTP and value.lower() in ("false", "off", "0"):
            raise SettingError(f"{flag}={value} can't be served: by HTTP it is found out whether models are ready")


def _address(host: str) -> str:
    """The address of a name, `localhost` and 127.0.0.1 being one; the name where it has none."""
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError):
        return host


def _flag_values(extra_args: Sequence[str]) -> list[tuple[str, str]]:
    """Tritonserver's flags with their values, which may be arguments of their own; empty for a flag without one."""
    found = []
    for argument, following in pairwise([*extra_args, ""]):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            found.append((flag, value if equals else "" if following.startswith("-") else following))
    return found


def restriction_headers(extra_args: Sequence[str]) -> dict[str, str]:
    """The HTTP headers that open what a server's own flags restrict: `--http-restricted-api=APIS:HEADER=VALUE`.

    Without them whoever starts a server with such flags could not ask it for its models.
    """
    values = (value for flag, value in _flag_values(extra_args) if flag == HTTP_RESTRICTION)
    headers = (value.partition(":")[2].partition("=") for value in values)
    return {name: value for name, _, value in headers if name}
