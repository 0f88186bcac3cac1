"""Starts a real tritonserver on a model repository.

`TritonServer` is a context manager around NVIDIA's own binary. Where that binary has no C++ onnxruntime
backend, as the one inside the nvidia-pytriton wheel, a CPU stand-in for it is brought along.
"""

from cnclip_server._binary import Binary, find_binary
from cnclip_server._errors import (
    BinaryNotFound,
    PortInUse,
    RepositoryError,
    ServerError,
    SettingError,
    StartupFailed,
    TemporaryFolderError,
    UnsupportedHost,
)
from cnclip_server._server import TritonServer
from cnclip_server._settings import Tls
from cnclip_server._startup import require_tritonserver

__all__ = [
    "Binary",
    "BinaryNotFound",
    "PortInUse",
    "RepositoryError",
    "ServerError",
    "SettingError",
    "StartupFailed",
    "TemporaryFolderError",
    "Tls",
    "TritonServer",
    "UnsupportedHost",
    "find_binary",
    "require_tritonserver",
]
