"""What goes wrong, as a tree.

ServerError
├── BinaryNotFound        there is no tritonserver to start
├── UnsupportedHost       this Python, C library or limit on open files cannot run it
├── RepositoryError       the model repository is missing, empty, or not what its manifest says
├── SettingError          an option that can't be used: a TLS file that is none
├── TemporaryFolderError  the temporary folder is full, missing, or nothing may be run from it
├── PortInUse             an address is taken
└── StartupFailed         tritonserver ran and gave up, or a model did not load
"""

from __future__ import annotations

import errno
from pathlib import Path


class ServerError(Exception):
    """Root of everything that this package raises on purpose."""


class BinaryNotFound(ServerError):
    """No tritonserver was found.

    Attributes:
        looked_in: Where it was looked for, in words.
    """

    def __init__(self, looked_in: str) -> None:
        self.looked_in = looked_in
        super().__init__(
            f"no tritonserver found ({looked_in}). Install the one inside NVIDIA's wheel with "
            "`pip install --no-deps nvidia-pytriton`, or name one with TRITONSERVER=/path/to/tritonserver, "
            "or serve the repository with NVIDIA's container (the image tritonserver, tag *-py3)"
        )


class UnsupportedHost(ServerError):
    """tritonserver cannot run with this Python, this C library, or so few open files."""


class SettingError(ServerError):
    """An option can't be used as it is."""


class RepositoryError(ServerError):
    """The model repository cannot be served.

    Attributes:
        path: The repository.
    """

    def __init__(
        self,
        path: Path,
        reason: str,
        fix: str | None = "give a folder written by `cnclip-build`, as `make repo` runs it",
    ) -> None:
        self.path = path
        super().__init__(f"{reason}; {fix}" if fix else reason)


def unreadable(repository: Path, error: OSError) -> RepositoryError:
    """What to raise where a file of a repository cannot be read."""
    denied = error.errno in (errno.EACCES, errno.EPERM)
    fix = f"let the user that serves read all of it: chmod -R a+rX {repository}" if denied else "see to its disk"
    return RepositoryError(repository, f"{error.filename} cannot be read ({error.strerror})", fix)


class TemporaryFolderError(ServerError):
    """The temporary folder cannot hold what a server needs: some 20 MB, libraries that are run among it.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"the temporary folder {path} can't be used: {reason}; name another with TMPDIR=/a/folder")


class PortInUse(ServerError):
    """Something else listens on a port that the server needs.

    Attributes:
        port: The port.
        flag: The option of `cnclip-serve` that chooses it, such as `--grpc-port`.
    """

    def __init__(self, host: str, port: int, flag: str) -> None:
        self.port = port
        self.flag = flag
        super().__init__(f"port {port} on {host} is in use; choose another with {flag}, or 0 for any free one")


class StartupFailed(ServerError):
    """tritonserver ended, or was not ready in time.

    Attributes:
        reason: The reason in one line, from tritonserver's log where it gave one.
        log_tail: The last lines of that log.
    """

    def __init__(self, reason: str, log_tail: str) -> None:
        self.reason = reason
        self.log_tail = log_tail
        super().__init__(reason)
