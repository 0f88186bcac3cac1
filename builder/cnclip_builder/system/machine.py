"""What this machine has, and the defaults that follow from it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from typing import Literal

from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.parity.distance import Precision

Target = Literal["cpu", "gpu"]
Platform = Literal["onnxruntime", "tensorrt"]
Accelerator = Literal["none", "cuda", "tensorrt"]

LEAST_INT8_SPEED_UP = 1.1
"""How many times FP32's speed INT8 must reach to be worth its loss: 1, and a margin for the measurement."""


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
    """64 on a GPU; 32 on a CPU, where larger batches bring no speed and cost memory."""
    return 64 if target == "gpu" else 32


def require_tensorrt(model: str) -> None:
    """Refuses to build plans where none can be built.

    Args:
        model: the options that name the checkpoint, for the commands that the message gives: "--arch RN50".

    Raises:
        MissingRequirementError: saying what is missing here, and the commands for the way round.
    """
    missing = [] if has_gpu() else ["an NVIDIA GPU with its driver (nvidia-smi lists none)"]
    missing += [
        f"{what} ({how})"
        for module, what, how in (
            ("tensorrt", "TensorRT's Python module", "the version of your tritonserver"),
            ("polygraphy", "polygraphy", "pip install 'cn-clip-triton[tensorrt]'"),
        )
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise MissingRequirementError(
            f"no TensorRT plan can be built: this machine lacks {' and '.join(missing)}. Use PLATFORM=onnxruntime; or "
            f"run `cnclip-build tensorrt {model} --bundle plans` here, "
            '`docker run --rm --gpus all -v "$PWD/plans:/plans" TENSORRT_IMAGE python3 /plans/build_plans.pyz` where '
            "the GPU is (TENSORRT_IMAGE: NVIDIA's tensorrt:YY.MM-py3 of your tritonserver's month), and then "
            f"`cnclip-build repository {model} --platform tensorrt --target gpu --plans plans` here"
        )
