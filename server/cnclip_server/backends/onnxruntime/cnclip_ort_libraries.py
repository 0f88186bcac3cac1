"""The libraries that ONNX Runtime's providers need on a GPU: those of pip's wheels, and why one was not started.

Runs inside the Python backend's stub: it imports the standard library and onnxruntime alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import sys
from pathlib import Path

import onnxruntime as ort


def load_cuda() -> None:
    """Loads CUDA's libraries from pip's wheels, where they are: a host then needs no CUDA of its own.

    ONNX Runtime has the function since 1.21; what it cannot load it prints, and the session then tells. By itself it
    looks beside itself alone: an environment that is laid over another one has in it what pip found there already.
    """
    preload = getattr(ort, "preload_dlls", None)
    if preload is None:
        return
    own = Path(ort.__file__).parents[1]
    with contextlib.redirect_stdout(io.StringIO()):
        preload()
        for entry in filter(None, sys.path):
            for folder in sorted(Path(entry).glob("nvidia/*/lib")):
                if not (own / folder.relative_to(entry)).is_dir():
                    preload(directory=str(folder))
                # It does not load these, for which NVRTC asks by their bare name when cuDNN has it compile.
                for library in folder.glob("libnvrtc-builtins.so.*"):
                    with contextlib.suppress(OSError):
                        ctypes.CDLL(str(library))


def load_tensorrt() -> None:
    """Loads TensorRT's libraries from pip's wheel, where they are.

    ONNX Runtime's provider asks for them by bare names, and its `preload_dlls` knows CUDA's and cuDNN's alone. What
    cannot be loaded the session then tells.
    """
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    # In this order: the parser asks for the other one. TensorRT opens its builder's resources beside itself.
    for pattern in ("libnvinfer.so.*", "libnvonnxparser.so.*"):
        for library in (found for folder in folders for found in sorted(folder.glob(pattern))):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def why_not_started(provider: str) -> str:
    """Why a provider's library cannot be loaded, in the loader's words."""
    name = provider.removesuffix("ExecutionProvider").lower()
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return str(error)
    # Up to ONNX Runtime 1.22, which falls back whatever it is told, and prints why.
    return "its library can be loaded; no GPU, or one or a driver that it does not support"
