"""CUDA's runtime library, which plans are run with to prove them: found before hours of work, or told for missing.

Polygraphy looks for it on LD_LIBRARY_PATH, in the toolkit's folder and, in some versions, in pip's wheel for CUDA 11
and 12; CUDA 13's wheel has it in another folder. Where only a wheel has it, that folder is put on LD_LIBRARY_PATH,
which Polygraphy reads when it first needs the library.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from cnclip_builder.errors import MissingRequirementError

_PATTERN = "libcudart.so*"
_SYSTEM = ("/usr/local/cuda/lib64", "/usr/lib", "/lib")
_VARIABLE = "LD_LIBRARY_PATH"


def require_cuda_runtime() -> None:
    """Makes sure that Polygraphy will find CUDA's runtime library and that it can be loaded.

    Raises:
        MissingRequirementError: naming the library and the package that has it.
    """
    named = [folder for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]
    library = _first([*named, *_SYSTEM])
    if library is None:
        library = _first(_wheels())
        if library is not None:
            os.environ[_VARIABLE] = os.pathsep.join([str(library.parent), *named])
    try:
        ctypes.CDLL(str(library or "libcudart.so"))
    except OSError as error:
        raise MissingRequirementError(
            f"CUDA's runtime library, libcudart.so, is not there or can't be loaded ({error}), and a plan is proved "
            "with it: pip install nvidia-cuda-runtime (for CUDA 13; nvidia-cuda-runtime-cu12 for CUDA 12), or name the "
            f"folder that has it in {_VARIABLE}"
        ) from None


def _wheels() -> list[str]:
    """The folders of pip's wheels of CUDA: `nvidia/cuda_runtime` of 11 and 12 first, `nvidia/cu13` and later after."""
    roots = [Path(entry) / "nvidia" for entry in sys.path if entry]
    folders = [folder for root in roots for folder in sorted(root.glob("cu*/lib"))]
    return [str(folder) for folder in sorted(folders, key=lambda folder: folder.parent.name != "cuda_runtime")]


def _first(folders: Iterable[str]) -> Path | None:
    for folder in folders:
        for found in sorted(Path(folder).glob(_PATTERN)):
            return found
    return None
