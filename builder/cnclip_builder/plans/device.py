"""Which GPU this machine has, asked of its driver; needs no library besides.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from cnclip_builder.plans.record import Device

# CUdevice_attribute of cuda.h.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76

# CUresult of cuda.h.
_REASONS = {
    35: "the driver is older than the CUDA that asks it",
    100: "the driver finds none",
    101: "CUDA_VISIBLE_DEVICES names none that is there",
    803: "the driver's library is of another version than its kernel module: restart the machine or the container",
    804: "this GPU's driver takes no newer CUDA: install a newer driver",
}


def current_device() -> Device | None:
    """The first GPU that CUDA shows this process (CUDA_VISIBLE_DEVICES counts); None where there is none."""
    cuda = _driver()
    if cuda is None:
        return None
    number, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    steps: tuple[Callable[[], int], ...] = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(number), 0),
        lambda: cuda.cuDeviceGetName(name, len(name), number),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, number),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, number),
    )
    if any(step() != 0 for step in steps):
        return None
    return Device(name.value.decode(), f"{major.value}.{minor.value}")


def why_no_device() -> str:
    """Why `current_device` found none, in one line."""
    cuda = _driver()
    if cuda is None:
        return "NVIDIA's driver, libcuda.so.1, is not there"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.split(",")[0].strip().replace("-1", ""):
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all: unset it, or name one"
    result = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(ctypes.c_int()), 0)
    return _REASONS.get(result, f"the driver answers with CUDA error {result}: see what nvidia-smi says")


def driver_version() -> int:
    """The newest CUDA that the driver runs, as CUDA counts it: 12040 for 12.4; 0 without a driver."""
    cuda, version = _driver(), ctypes.c_int()
    if cuda is not None:
        cuda.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
