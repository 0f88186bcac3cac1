"""A GPU of NVIDIA's, by cuda-core."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cnclip_card._device import Memory
from cnclip_card._errors import CardUnfit
from cnclip_card._resize import KERNELS, SOURCE

__all__ = ["Cuda", "compile_kernels"]

_OLDEST = (7, 5)
"""The least compute capability that CUDA 13 compiles for: Turing's."""


def compile_kernels(capability: str) -> Any:
    """Compiles the kernels by NVRTC, for which no GPU is needed.

    Args:
        capability: a GPU's compute capability, "90" for 9.0.

    Returns:
        cuda-core's `ObjectCode`.

    Raises:
        Exception: whatever cuda-core raises, as where there is no NVRTC.
    """
    from cuda.core import Program, ProgramOptions

    _load_nvrtc()
    # One rounding for a product and a sum would give other last bits than Pillow's two.
    options = ProgramOptions(arch=f"sm_{capability}", fma=False)
    return Program(SOURCE.read_text(encoding="ascii"), "c++", options).compile("cubin")


def _load_nvrtc() -> None:
    """Loads NVRTC from pip's wheel: cuda-core finds it in this environment, and in none that this one is laid over."""
    for entry in filter(None, sys.path):
        for library in sorted(Path(entry).glob("nvidia/cu13/lib/libnvrtc*.so.13*")):
            if ".alt." not in library.name:  # its own builtins, for which it asks by their bare name, and NVRTC
                ctypes.CDLL(str(library))


class _Pooled:
    """Memory out of the driver's pool: it goes back with the buffer that is held here."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer
        self.address = int(buffer.handle)


class _Plain:
    """Memory of its own, by `cuMemAlloc`."""

    def __init__(self, address: int, free: Callable[[int], object]) -> None:
        self.address = address
        weakref.finalize(self, free, address)


class Cuda:
    """A GPU, with the kernels compiled for it.

    Attributes:
        memory: bytes that it has in all.
        stream: the address of the CUDA stream on which all is done.

    Args:
        number: the GPU's, as this process sees it.

    Raises:
        CardUnfit: there is none, or cuda-core, the driver or NVRTC is missing or too old.
    """

    def __init__(self, number: int) -> None:
        try:
            from cuda.bindings import __version__, driver
            from cuda.core import Device, LaunchConfig, launch
        except ImportError as error:
            raise CardUnfit(f"cuda-core is not installed ({error}): pip install 'cn-clip-triton[gpu-decode]'") from None
        self._driver, self._launch, self._config = driver, launch, LaunchConfig
        self._require_driver(__version__)
        try:
            self._device = Device(number)
            self._device.set_current()
            self._stream = self._device.create_stream()
            self.stream = int(self._stream.handle)
            self.memory = int(self._checked(driver.cuDeviceTotalMem(number)))
            self._require_capability(tuple(self._device.compute_capability))
            code = compile_kernels(self._device.arch)
            self._kernels = {name: code.get_kernel(name) for name in KERNELS}
        except CardUnfit:
            raise
        except Exception as error:  # of several libraries, which share no class of errors
            raise CardUnfit(f"CUDA does not work ({type(error).__name__}: {error})") from error

    def _require_capability(self, capability: tuple[int, ...]) -> None:
        """Looks at the GPU's age, since drivers for CUDA 13 run older ones, too.

        Raises:
            CardUnfit: the kernels can't be compiled for it.
        """
        if capability < _OLDEST:
            found, needed = (".".join(map(str, version)) for version in (capability, _OLDEST))
            raise CardUnfit(f"this GPU has compute capability {found}, and CUDA 13 compiles for {needed} and later")

    def _require_driver(self, bindings: str) -> None:
        """Looks at the driver's version before anything fails for it in other words.

        Raises:
            CardUnfit: there is no driver, or one too old for the CUDA that the kernels are compiled by.
        """
        try:
            version = int(self._checked(self._driver.cuDriverGetVersion()))
        except Exception as error:  # it can't be loaded
            raise CardUnfit(f"there is no NVIDIA driver ({type(error).__name__}: {error})") from error
        cuda, needed = (version // 1000, version % 1000 // 10), bindings.partition(".")[0]
        if cuda[0] < int(needed):
            raise CardUnfit(
                f"the NVIDIA driver is for CUDA {cuda[0]}.{cuda[1]}, and cuda-bindings {bindings} needs one for CUDA "
                f"{needed}: update the driver"
            )

    def allocate(self, size: int, *, to_hand_on: bool = False) -> Memory:
        """Gives memory of so many bytes, out of a pool unless it is to be handed on."""
        self._device.set_current()
        if to_hand_on:
            # Triton's Python backend asks the driver where a tensor's memory begins, and elsewhere for a handle to
            # share it by (its pb_memory.cc). A pool's memory has no such handle, and is of no context.
            return _Plain(int(self._checked(self._driver.cuMemAlloc(size))), self._free)
        return _Pooled(self._device.allocate(size, stream=self._stream))

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes into its memory, behind what it was asked for before."""
        self._checked(self._driver.cuMemcpyHtoDAsync(address, data, len(data), self._stream.handle))
        self._stream.sync()

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out of its memory."""
        data = bytearray(size)
        whole = np.frombuffer(data, np.uint8)
        self._checked(self._driver.cuMemcpyDtoHAsync(whole.ctypes.data, address, size, self._stream.handle))
        self._stream.sync()
        return bytes(data)

    def launch(self, kernel: str, blocks: tuple[int, int, int], threads: int, pictures: int, *numbers: int) -> None:
        """Has it run a kernel, behind what it was asked for before."""
        told = (np.uint64(pictures), *(np.int32(number) for number in numbers))
        self._launch(self._stream, self._config(grid=blocks, block=threads), self._kernels[kernel], *told)

    def wait(self) -> None:
        """Returns once it has done all that it was asked for."""
        self._stream.sync()

    def tensor(self, memory: Memory, offset: int, shape: tuple[int, ...]) -> Any:
        """A capsule of DLPack for uint8 of a shape, `offset` bytes into memory that it then holds."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        part = Buffer.from_handle(memory.address + offset, int(np.prod(shape)), owner=memory)
        # All that fills it has been waited for: whoever reads it need not.
        return StridedMemoryView.from_buffer(part, shape, dtype=np.dtype(np.uint8)).__dlpack__(stream=-1)

    def _free(self, address: int) -> None:
        self._device.set_current()  # whoever lets go of a tensor may be in any thread
        self._driver.cuMemFree(address)

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        """What a function of the driver gives.

        Raises:
            RuntimeError: it failed.
        """
        error, *values = answer
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(error.name)
        return values[0] if values else None
