"""A card that is none: memory of the host, and the kernels' own source compiled for the processor.

All but CUDA itself is what runs on a GPU, nvImageCodec's decoder among it, on its CPU backend.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cnclip_card._decoder import NvImageCodec
from cnclip_card._resize import SOURCE, Picture

COMPILED_BY = "c++"
# As NVRTC is told to: without fused multiply-adds.
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def compile_twin(folder: Path, *flags: str) -> Path:
    """Compiles it."""
    target = folder / "card_twin.so"
    source = Path(__file__).with_suffix(".cpp")
    command = [COMPILED_BY, *FLAGS, *flags, f'-DKERNELS="{SOURCE}"', str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def can_compile() -> bool:
    return shutil.which(COMPILED_BY) is not None


class HostMemory:
    def __init__(self, size: int) -> None:
        self.array = np.full(size, 0xA5, np.uint8)  # nothing that a test takes for a result
        self.address: int = self.array.ctypes.data


class Twin:
    """A `Device` on the host. `fails` has so many allocations from now on go well, and then one fail."""

    def __init__(self, library: Path, memory: int = 1 << 30) -> None:
        self._library = ctypes.CDLL(str(library))
        self.memory = memory
        self.fails: int | None = None
        self.error: Exception = RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed")
        self.largest = 0

    def allocate(self, size: int, *, to_hand_on: bool = False) -> HostMemory:
        if self.fails is not None:
            self.fails -= 1
            if self.fails < 0:
                self.fails = None
                raise self.error
        self.largest = max(self.largest, size)
        return HostMemory(size)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def launch(self, kernel: str, blocks: tuple[int, int, int], threads: int, pictures: int, *numbers: int) -> None:
        function = getattr(self._library, f"launch_{kernel}")
        function((ctypes.c_uint * 3)(*blocks), threads, ctypes.c_void_p(pictures), *numbers)

    def wait(self) -> None:
        pass

    def tensor(self, memory: HostMemory, offset: int, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape))
        capsule = memory.array[offset : offset + size].reshape(shape).__dlpack__()
        # Triton renames a capsule that it has used to what nobody else does, and numpy's destructor does not get over it.
        # cuda-core's passes over names that it does not know.
        set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
        set_destructor.argtypes = (ctypes.py_object, ctypes.c_void_p)
        set_destructor(capsule, None)
        return capsule


class Counting:
    """A decoder that counts what it is asked for."""

    def __init__(self, decoder: NvImageCodec) -> None:
        self._decoder = decoder
        self.about = decoder.about
        self.asked: list[list[tuple[int, int]]] = []

    def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Picture | None]:
        self.asked.append(list(sizes))
        return self._decoder.decode(jpegs, sizes)
