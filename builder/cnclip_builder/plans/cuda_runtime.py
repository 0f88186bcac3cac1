"""CUDA's libraries that plans are built and proved with: found before hours of work, or told for missing.

Polygraphy looks for CUDA's runtime on LD_LIBRARY_PATH, in the toolkit's folder and, in some versions, in pip's wheel
for CUDA 11 and 12; CUDA 13's wheel has it in another folder. Where only a wheel has it, that folder is put on
LD_LIBRARY_PATH, which Polygraphy reads when it first needs the library.

TensorRT 8.5 opens cuBLAS and cuBLASLt by their bare names: Myelin, its compiler of transformers, when it meets the
first product ("cuBLASLt error 1 querying major version" where there is none, after minutes), and its runtime when such
a plan is loaded. Where only a wheel has them, they are opened here by their paths: the dynamic linker gives them to
whoever asks for those names afterwards.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cnclip_builder.errors import MissingRequirementError

_PATTERN = "libcudart.so*"
_SYSTEM = ("/usr/local/cuda/lib64", "/usr/lib", "/lib")
_VARIABLE = "LD_LIBRARY_PATH"

_CUBLAS_MAJORS = (11, 12)
"""Of CUDA, for which TensorRT 8.5 was made: PyPI's for 11, some of NVIDIA's containers for 12."""


def require_cuda_runtime() -> str:
    """Makes sure that Polygraphy will find CUDA's runtime library and that it can be loaded.

    Returns:
        Its path, or its name where the dynamic linker knows the place.

    Raises:
        MissingRequirementError: naming the library and the package that has it.
    """
    named = _named()
    library = _first([*named, *_SYSTEM], _PATTERN)
    if library is None:
        library = _first(_wheels(), _PATTERN)
        if library is not None:
            os.environ[_VARIABLE] = os.pathsep.join([str(library.parent), *named])
    found = str(library or "libcudart.so")
    try:
        ctypes.CDLL(found)
    except OSError as error:
        raise MissingRequirementError(
            f"CUDA's runtime library, libcudart.so, is not there or can't be loaded ({error}), and a plan is proved "
            "with it: pip install nvidia-cuda-runtime (for CUDA 13; nvidia-cuda-runtime-cu12 for CUDA 12), or name the "
            f"folder that has it in {_VARIABLE}"
        ) from None
    return found


def runtime_version(library: str) -> int:
    """CUDA's version of a runtime library as CUDA counts it: 12040 for 12.4; 0 where it does not say.

    Args:
        library: from `require_cuda_runtime`.
    """
    version = ctypes.c_int()
    ctypes.CDLL(library).cudaRuntimeGetVersion(ctypes.byref(version))
    return version.value


def require_cublas() -> dict[str, str]:
    """Opens the cuBLAS and cuBLASLt that TensorRT 8.5 will ask for.

    Returns:
        Their versions by their names: {"libcublasLt.so.11": "11.11.3", ...}.

    Raises:
        MissingRequirementError: naming the libraries and the package that has them.
    """
    majors = _cublas_majors()
    for major in majors:
        # In this order: cuBLAS itself asks for the other one.
        names = {"cublasLt": f"libcublasLt.so.{major}", "cublas": f"libcublas.so.{major}"}
        opened = {kind: _open(name) for kind, name in names.items()}
        if None not in opened.values():
            return {names[kind]: _cublas_version(library, kind) for kind, library in opened.items()}
    raise MissingRequirementError(
        f"libcublasLt.so.{majors[0]} and libcublas.so.{majors[0]} are not there or can't be loaded, and TensorRT 8.5 "
        f"compiles transformers with them: pip install nvidia-cublas-cu{majors[0]}, or name the folder that has them "
        f"in {_VARIABLE}; later versions do without, if your tritonserver has one"
    )


def _open(name: str) -> ctypes.CDLL | None:
    places = [_first(folders, name) for folders in (_named(), _wheels("*"), _SYSTEM)]
    for library in (name, *(str(place) for place in places if place)):
        try:
            return ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    return None


def _cublas_majors() -> Sequence[int]:
    """CUDA's major version that the installed TensorRT was made for; all it may be where its wheel names none."""
    try:
        needs = importlib.metadata.requires("tensorrt") or []
    except importlib.metadata.PackageNotFoundError:
        needs = []
    named = [int(match.group(1)) for match in map(re.compile(r"nvidia-cublas-cu(\d+)\b").match, needs) if match]
    return named or _CUBLAS_MAJORS


def _cublas_version(library: ctypes.CDLL | None, kind: str) -> str:
    """As TensorRT writes it: "11.11.3".

    Args:
        library: one of the two.
        kind: what its functions' names begin with.
    """
    numbers = [ctypes.c_int() for _ in range(3)]
    for which, number in enumerate(numbers):  # libraryPropertyType of library_types.h
        getattr(library, f"{kind}GetProperty")(which, ctypes.byref(number))
    return ".".join(str(number.value) for number in numbers)


def _named() -> list[str]:
    return [folder for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]


def _wheels(folder: str = "cu*") -> list[str]:
    """The folders of pip's wheels of CUDA: `nvidia/cuda_runtime` of 11 and 12 first, `nvidia/cu13` and later after."""
    roots = [Path(entry) / "nvidia" for entry in sys.path if entry]
    folders = [found for root in roots for found in sorted(root.glob(f"{folder}/lib"))]
    return [str(found) for found in sorted(folders, key=lambda found: found.parent.name != "cuda_runtime")]


def _first(folders: Iterable[str], pattern: str) -> Path | None:
    for folder in folders:
        for found in sorted(Path(folder).glob(pattern)):
            return found
    return None
