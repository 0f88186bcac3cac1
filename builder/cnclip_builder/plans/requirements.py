"""What a machine must have to build plans, asked in seconds, before the hours of work that would fail for want of it.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import re

from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.plans.api import TensorRT
from cnclip_builder.plans.cuda_runtime import require_cublas, require_cuda_runtime, runtime_version
from cnclip_builder.plans.device import driver_version, why_no_device
from cnclip_builder.plans.record import Device

_OLDEST = (((10, 5), (7, 5)), ((9, 0), (6, 0)), ((8, 6), (5, 0)), ((8, 5), (3, 5)))
"""From which TensorRT on which compute capability is the least.

Its release notes: 8.5 was the last for Kepler, 9.0 has no Maxwell, 10.5 no Volta.
"""

_NEWEST = (((8, 5), (9, 9)), ((10, 8), (99, 9)))
"""From which TensorRT on which compute capability is the highest: 10.8 brought Blackwell (10.0), 8.5 Hopper (9.0)."""

_DRIVERS = {11: 450, 12: 525, 13: 580}
"""NVIDIA's drivers from which on a CUDA runs, of whatever second number (CUDA Compatibility, minor versions)."""


def require_machine(tensorrt: TensorRT, device: Device | None) -> dict[str, str]:
    """Refuses to build where a build would fail.

    Args:
        tensorrt: the installed TensorRT.
        device: this machine's GPU.

    Returns:
        The versions, by name, of the libraries beside TensorRT that its plans need, here and where they are served.

    Raises:
        MissingRequirementError: there is no GPU; it is too old or too new for this TensorRT; the driver is too old for
            CUDA's runtime or for TensorRT; a library is missing.
    """
    if device is None:
        raise MissingRequirementError(
            f"no NVIDIA GPU was found ({why_no_device()}), and a plan is built on the GPU that runs it"
        )
    _require_known(tensorrt.version, device)
    runtime = runtime_version(require_cuda_runtime())
    driver = driver_version()
    if driver // 1000 < runtime // 1000:
        needed = _DRIVERS.get(runtime // 1000)
        raise MissingRequirementError(
            f"the NVIDIA driver runs CUDA {_written(driver)} at most, and libcudart.so is of CUDA {_written(runtime)}: "
            f"install driver {f'{needed} or later' if needed else 'of that CUDA'}, or CUDA's runtime for "
            f"{driver // 1000} (pip install nvidia-cuda-runtime-cu{driver // 1000}) with a TensorRT for it, such as "
            f"tensorrt-cu{driver // 1000}"
        )
    tensorrt.require_builder()
    return require_cublas() if tensorrt.needs_cublas else {}


def _require_known(version: str, device: Device) -> None:
    """Refuses a GPU that this TensorRT does not know.

    Raises:
        MissingRequirementError: saying which it knows.
    """
    numbers = re.findall(r"\d+", version)
    tensorrt = (int(numbers[0]), int(numbers[1]))
    major, _, minor = device.compute_capability.partition(".")
    capability = (int(major), int(minor))
    named = f"{device.name} has compute capability {device.compute_capability}"
    oldest = next((least for since, least in _OLDEST if tensorrt >= since), (0, 0))
    if capability < oldest:
        raise MissingRequirementError(
            f"{named}, and TensorRT {version} builds for {oldest[0]}.{oldest[1]} and later: use PLATFORM=onnxruntime, "
            "or an older TensorRT, if your tritonserver has one"
        )
    newest = max(most for since, most in _NEWEST if tensorrt >= since) if tensorrt >= (8, 5) else capability
    if capability > newest:
        raise MissingRequirementError(
            f"{named}, which TensorRT {version} does not know yet: install 10.8 or later, and serve with a "
            "tritonserver that has it; or use PLATFORM=onnxruntime"
        )


def _written(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
