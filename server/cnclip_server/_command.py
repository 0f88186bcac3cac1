"""Writes tritonserver's command line."""

from __future__ import annotations

import secrets
from pathlib import Path

from cnclip_server._backends import assemble_backends
from cnclip_server._binary import Binary
from cnclip_server._folder import SHELL_SAFE, check_executable
from cnclip_server._settings import HTTP_RESTRICTION, Settings, Tls

# What tritonserver grants open connections and crashed stubs, which it waits for to the last second.
EXIT_TIMEOUT_S = 5

# What nobody needs for reading features, and what reaches into the server: its memory, its files, its log.
_RESTRICTED = "shared-memory,trace,logging"
_GRPC_RESTRICTION = "--grpc-restricted-protocol"

# In the config of a model whose tensors stay on its GPU.
_ON_GPU = "FORCE_CPU_ONLY_INPUT_TENSORS"
# Of each GPU's memory, for tensors on their way from model to model: 27 batches of 64 images of 224 x 224.
_CUDA_POOL_BYTES = 256 << 20
_MOST_GPUS = 16  # Triton passes over those that are not there


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
    names = (_GRPC_RESTRICTION, HTTP_RESTRICTION)
    if any(argument.startswith(names) for argument in settings.extra_args):
        return []
    key = settings.admin_key or secrets.token_urlsafe(32)
    return [f"{name}={_RESTRICTED}:admin-key={key}" for name in names if binary.knows_flag(name)]
