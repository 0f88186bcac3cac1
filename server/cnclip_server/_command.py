"""Writes tritonserver's command line."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cnclip_server._backends import assemble_backends
from cnclip_server._binary import Binary
from cnclip_server._errors import SettingError
from cnclip_server._folder import SHELL_SAFE, check_executable
from cnclip_server._ports import Ports

# What tritonserver grants open connections and crashed stubs, which it waits for to the last second.
EXIT_TIMEOUT_S = 5

# What nobody needs for reading features, and what reaches into the server: its memory, its files, its log.
_RESTRICTED = "shared-memory,trace,logging"
_GRPC_RESTRICTION, _HTTP_RESTRICTION = "--grpc-restricted-protocol", "--http-restricted-api"

# What this package has to know to ask its server how it does, and tells where that is.
_PORTS = ("--grpc-port", "--http-port", "--metrics-port")
_ADDRESSES = ("--grpc-address", "--http-address", "--metrics-address")
_ANY_ADDRESS = "0.0.0.0"  # noqa: S104
_ALLOW_HTTP = "--allow-http"

# In the config of a model whose tensors stay on its GPU.
_ON_GPU = "FORCE_CPU_ONLY_INPUT_TENSORS"
# Of each GPU's memory, for tensors on their way from model to model: 27 batches of 64 images of 224 x 224.
_CUDA_POOL_BYTES = 256 << 20
_MOST_GPUS = 16  # Triton passes over those that are not there


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


@dataclass(frozen=True)
class Settings:
    """What tritonserver is to serve, and where.

    Attributes:
        repository: The model repository.
        host: The address to listen on.
        ports: The ports to listen on.
        extra_args: Further flags; where they repeat one of ours, they win.
        tls: How gRPC is encrypted; None for plain text.
        admin_key: What a client has to know to use the restricted APIs; None for a key that nobody knows.
    """

    repository: Path
    host: str
    ports: Ports
    extra_args: Sequence[str] = ()
    tls: Tls | None = None
    admin_key: str | None = None

    @property
    def keys(self) -> list[str]:
        """The keys to restricted APIs among all this, which no message may hold."""
        own = (argument.rpartition("=")[2] for argument in self.extra_args if "-restricted-" in argument)
        return [key for key in (self.admin_key, *own) if key]

    @property
    def http_host(self) -> str:
        """The address that HTTP listens on."""
        return self.host if self.tls is None else "127.0.0.1"


def linked_repository(folder: Path) -> Path:
    """Where `server_command` links a repository whose own path would not survive Triton's shell."""
    return folder / "repository"


def server_command(binary: Binary, settings: Settings, *, folder: Path, shm_prefix: str) -> list[str]:
    """Writes the command line, and lays out the files that it names.

    Args:
        binary: The tritonserver to run.
        settings: What to serve, and where.
        folder: The server's temporary folder.
        shm_prefix: How the names of the Python backend's shared memory are to begin.

    Raises:
        UnsupportedHost: The binary has no Python backend, or none for this version of Python.
        TemporaryFolderError: Libraries cannot be loaded from the folder.
        OSError: It is full.
    """
    repository = settings.repository.resolve()
    if not SHELL_SAFE.fullmatch(str(repository)):
        link = linked_repository(folder)
        link.symlink_to(repository, target_is_directory=True)
        repository = link
    command = [
        str(binary.path),
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        # It answers only once all models are there. Strict, it would not be ready while a poll loads versions more.
        "--strict-readiness=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--grpc-address={settings.host}",
        f"--grpc-port={settings.ports.grpc}",
        f"--http-address={settings.http_host}",
        f"--http-port={settings.ports.http}",
        "--allow-metrics=true",
        f"--metrics-port={settings.ports.metrics}",
    ]
    if binary.knows_flag("--metrics-address"):
        command.append(f"--metrics-address={settings.host}")
    if not binary.has_onnxruntime:
        check_executable(folder)
        backends = folder / "backends"
        backends.mkdir()
        assemble_backends(binary, backends)
        command.append(f"--backend-directory={backends}")
    command += memory_pools(settings.repository)
    return [*command, *_tls_flags(settings.tls), *_restrictions(binary, settings), *settings.extra_args]


def memory_pools(repository: Path) -> list[str]:
    """Room for tensors that stay on a GPU; and no pinned memory, to which Triton would copy them wrongly without room.

    `cnclip_handover` of the templates says how, and looks for the flag. The stand-in for the onnxruntime backend has no
    use for pinned memory.
    """
    configs = (config.read_text(encoding="utf-8", errors="replace") for config in repository.glob("*/config.pbtxt"))
    if not any(_ON_GPU in config for config in configs):
        return []
    pools = (f"--cuda-memory-pool-byte-size={gpu}:{_CUDA_POOL_BYTES}" for gpu in range(_MOST_GPUS))
    return ["--pinned-memory-pool-byte-size=0", *pools]


def _tls_flags(tls: Tls | None) -> list[str]:
    if tls is None:
        return []
    flags = [f"--grpc-server-cert={tls.certificate.resolve()}", f"--grpc-server-key={tls.key.resolve()}"]
    if tls.client_ca is None:
        return ["--grpc-use-ssl=true", *flags]
    return ["--grpc-use-ssl-mutual=true", *flags, f"--grpc-root-cert={tls.client_ca.resolve()}"]


def _restrictions(binary: Binary, settings: Settings) -> list[str]:
    """Triton refuses an API that is restricted twice: whoever restricts any by a flag of their own does it all."""
    names = (_GRPC_RESTRICTION, _HTTP_RESTRICTION)
    if any(argument.startswith(names) for argument in settings.extra_args):
        return []
    key = settings.admin_key or secrets.token_urlsafe(32)
    return [f"{name}={_RESTRICTED}:admin-key={key}" for name in names if binary.knows_flag(name)]


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
        if flag in _ADDRESSES and value not in (http_at if "http" in flag else grpc_at, _ANY_ADDRESS):
            raise SettingError(f"{flag}={value} would be where the server is not asked: give --host, before `--`")
        if flag == _ALLOW_HTTP and value.lower() in ("false", "off", "0"):
            raise SettingError(f"{flag}={value} can't be served: by HTTP it is found out whether models are ready")


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
    values = (value for flag, value in _flag_values(extra_args) if flag == _HTTP_RESTRICTION)
    headers = (value.partition(":")[2].partition("=") for value in values)
    return {name: value for name, _, value in headers if name}
