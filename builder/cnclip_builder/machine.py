"""What this machine has, and the defaults that follow from it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.parity import Precision

Target = Literal["cpu", "gpu"]
Platform = Literal["onnxruntime", "tensorrt"]


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU; asks nvidia-smi, which comes with every driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def default_target() -> Target:
    """`gpu` where there is one."""
    return "gpu" if has_gpu() else "cpu"


def default_precision(target: Target) -> Precision:
    """FP16 for a GPU; FP32 for a CPU, where FP16 is computed in FP32 with conversions and is slower."""
    return "fp16" if target == "gpu" else "fp32"


def default_max_batch_size(target: Target) -> int:
    """64 on a GPU; 16 on a CPU, where larger batches bring no speed and cost memory."""
    return 64 if target == "gpu" else 16


def require_tensorrt() -> None:
    """Refuses PLATFORM=tensorrt where no plan can be built.

    Raises:
        MissingRequirementError: always, in this version; it says what is missing here and the way round.
    """
    lacking = [] if has_gpu() else ["an NVIDIA GPU with its driver (nvidia-smi lists none)"]
    missing = f"this machine lacks {' and '.join(lacking)}, and " if lacking else ""
    raise MissingRequirementError(
        f"no TensorRT plan can be built: {missing}this version of the builder does not build plans yet. Use "
        "PLATFORM=onnxruntime; on a GPU its CUDA provider runs the same ONNX files"
    )
