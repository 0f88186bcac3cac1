"""Inputs that lie in a GPU's memory: read where they are, and handed to ONNX Runtime without a way through the host.

Triton leaves them there where the configuration has the parameter FORCE_CPU_ONLY_INPUT_TENSORS "no", as those of
encoders have whose images a GPU decodes. Runs inside the Python backend's stub: it imports the standard library, numpy,
onnxruntime and, where several requests share a run, cuda-core, which is there where a GPU decodes.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

_KINDS = {1: "cpu", 2: "cuda"}  # DLPack's kDLCPU and kDLCUDA, in ONNX Runtime's words
_TYPES = {0: "i", 1: "u", 2: "f"}  # its kDLInt, kDLUInt and kDLFloat, in numpy's


class _Tensor(ctypes.Structure):
    """DLPack's `DLTensor`, with which its `DLManagedTensor` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """A tensor in a device's memory, its rows behind each other.

    Attributes:
        address: of its first byte.
        kind: of the device, as ONNX Runtime names it.
        device: the device's number.
        dtype: of its elements.
        shape: its rows first.
        owner: what keeps the memory.
    """

    address: int
    kind: str
    device: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    owner: object

    @classmethod
    def of(cls, capsule: Any, owner: object) -> DeviceArray:
        """Reads a capsule of DLPack, and leaves it as it is.

        Raises:
            ValueError: it is of a device or type that no model here takes, or has gaps between its rows.
        """
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
        shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        if tensor.kind not in _KINDS or tensor.code not in _TYPES or tensor.lanes != 1:
            raise ValueError("a tensor on a device has a type that is not handed on; send it from the host")
        dtype = np.dtype(f"{_TYPES[tensor.code]}{tensor.bits // 8}")
        if tensor.strides:
            dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            if any(tensor.strides[axis] != dense[axis] for axis in range(len(shape)) if shape[axis] > 1):
                raise ValueError("a tensor on a device has gaps between its elements; send it without")
        address = (tensor.data or 0) + tensor.byte_offset
        return cls(address, _KINDS[tensor.kind], tensor.device, dtype, shape, (owner, capsule))

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize


Input = npt.NDArray[Any] | DeviceArray


def joined(arrays: Sequence[DeviceArray]) -> DeviceArray:
    """Gives arrays as one, the rows of the first before those of the next; several are copied, within the device.

    Raises:
        Exception: whatever CUDA raises, as where memory is full.
    """
    first = arrays[0]
    if len(arrays) == 1:
        return first
    shape = (sum(array.shape[0] for array in arrays), *first.shape[1:])
    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, first.dtype, first.kind, first.device)
    _copy(arrays, value.data_ptr())
    return DeviceArray(value.data_ptr(), first.kind, first.device, first.dtype, shape, value)


def run(
    session: ort.InferenceSession, names: Sequence[str], inputs: Mapping[str, Input], options: ort.RunOptions
) -> list[npt.NDArray[Any]]:
    """Runs a session on inputs of which some lie on a device; its outputs come to the host."""
    binding = session.io_binding()
    for name, array in inputs.items():
        if isinstance(array, DeviceArray):
            binding.bind_input(name, array.kind, array.device, array.dtype.type, list(array.shape), array.address)
        else:
            binding.bind_cpu_input(name, array)
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding, options)
    outputs: list[npt.NDArray[Any]] = binding.copy_outputs_to_cpu()
    return outputs


def _copy(arrays: Sequence[DeviceArray], address: int) -> None:
    """Copies arrays behind each other, and returns once they are there."""
    if arrays[0].kind == "cpu":
        for array in arrays:
            ctypes.memmove(address, array.address, array.nbytes)
            address += array.nbytes
        return
    from cuda.bindings import driver
    from cuda.core import Device

    Device(arrays[0].device).set_current()
    errors = []
    for array in arrays:
        errors += driver.cuMemcpyDtoD(address, array.address, array.nbytes)
        address += array.nbytes
    # The host does not wait for copies within a device (CUDA's "API synchronization behavior"); nor does ONNX Runtime's
    # stream for the default one, on which they are (cudaStreamNonBlocking in its cuda_execution_provider.cc).
    errors += driver.cuStreamSynchronize(driver.CUstream(0))
    for error in errors:
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{error.name} while inputs were copied on the GPU")
