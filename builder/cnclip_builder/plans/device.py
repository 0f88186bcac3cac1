"""Which GPU this machine has, asked of its driver; needs no library besides.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from cnclip_builder.plans.record import Device

# CUdevice_attribute of cuda.h.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


def current_device() -> Device | None:
    """The first GPU that CUDA shows this process (CUDA_VISIBLE_DEVICES counts); None where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
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
