"""Writes tritonserver's command line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnclip_server._backends import assemble_backends
from cnclip_server._binary import Binary
from cnclip_server._ports import Ports

# What tritonserver grants open connections and crashed stubs, which it waits for to the last second.
EXIT_TIMEOUT_S = 5

# Triton's Python backend starts its stubs through `bash -c` with unquoted paths: these characters survive
# that.
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """What tritonserver is to serve, and where.

    Attributes:
        repository: The model repository.
        host: The address to listen on.
        ports: The ports to listen on.
        extra_args: Further flags; where they repeat one of ours, they win.
    """

    repository: Path
    host: str
    ports: Ports
    extra_args: Sequence[str] = ()


def make_folder() -> Path:
    """Makes a temporary folder for one server, where Triton's Python backend can start its stubs from."""
    base = tempfile.gettempdir()
    safe_base = base if _SHELL_SAFE.fullmatch(base) else "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="cnclip-server-", dir=safe_base))


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
    """
    repository = settings.repository.resolve()
    if not _SHELL_SAFE.fullmatch(str(repository)):
        link = linked_repository(folder)
        link.symlink_to(repository, target_is_directory=True)
        repository = link
    command = [
        str(binary.path),
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--grpc-address={settings.host}",
        f"--grpc-port={settings.ports.grpc}",
        f"--http-address={settings.host}",
        f"--http-port={settings.ports.http}",
        "--allow-metrics=true",
        f"--metrics-port={settings.ports.metrics}",
    ]
    if binary.knows_flag("--metrics-address"):
        command.append(f"--metrics-address={settings.host}")
    if not binary.has_onnxruntime:
        backends = folder / "backends"
        backends.mkdir()
        assemble_backends(binary, backends)
        command.append(f"--backend-directory={backends}")
    return [*command, *settings.extra_args]
