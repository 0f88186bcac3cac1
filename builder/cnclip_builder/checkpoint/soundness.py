"""Whether a checkpoint's numbers can be a model's: finite tensors, and a scale that cosines are multiplied by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from cnclip_builder.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# cn_clip and CLIP clamp the factor to 1..100 while they train.
_LEAST_SCALE, _LARGEST_SCALE = 0.01, 1000.0

_NAMED = 3

_WEIGHT_TYPES = ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float64")
COUNTER = ".num_batches_tracked"
"""An integer that a BatchNorm keeps for its training; cn_clip loads a model without it, too."""


def read_logit_scale(path: Path, tensor: torch.Tensor) -> float:
    """Gives the factor on cosines, already exponentiated.

    Args:
        path: named in the error.
        tensor: `logit_scale`, its logarithm.

    Raises:
        CheckpointError: it is not finite, or the factor is out of all proportion.
    """
    logarithm = float(tensor)
    lowest, highest = math.log(_LEAST_SCALE), math.log(_LARGEST_SCALE)
    if lowest <= logarithm <= highest:
        return math.exp(logarithm)
    hint = ""
    if 1 < logarithm <= _LARGEST_SCALE:
        hint = f"; if {logarithm:g} is the factor itself, save its logarithm, {math.log(logarithm):.4f}"
    raise CheckpointError(
        f"{path}: logit_scale is {logarithm:g}, and the logarithm of a factor on cosines lies between {lowest:.1f} and "
        f"{highest:.1f} (4.6052 in the official checkpoints): mend it, or take a checkpoint from before it went "
        f"astray{hint}"
    )


def require_floats(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Looks at the types of tensors, of which two kinds may be put together in one where integers would not be seen.

    Raises:
        CheckpointError: one is of a type that weights don't have, sparse, or without numbers.
    """
    for name, tensor in tensors.items():
        if str(tensor.layout) != "torch.strided" or tensor.is_meta:
            form = "without its numbers (on the meta device)" if tensor.is_meta else "as a sparse tensor"
            raise CheckpointError(f"{path} holds {name} {form}: save the model again with all its weights, as they are")
        if str(tensor.dtype) not in _WEIGHT_TYPES and not name.endswith(COUNTER):
            raise CheckpointError(
                f"{path} holds {name} as {str(tensor.dtype).removeprefix('torch.')}, and weights are FP32, FP16 or "
                "BF16: save the model again in one of them, or fetch it again"
            )


def require_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Looks at every number; reads the whole file.

    Raises:
        CheckpointError: some are NaN or infinite, or no floats; the tensors are named.
    """
    require_floats(path, tensors)
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise CheckpointError(
            f"{path} holds NaN or infinite numbers in {len(bad)} of {len(tensors)} tensors, {', '.join(bad[:_NAMED])}"
            f"{more}: its training diverged, or the file is damaged; take a checkpoint from before, or fetch it again"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # One pass without a mask as large as the tensor; NaN is passed on.
    low, high = (float(bound) for bound in tensor.aminmax())
    return math.isfinite(low) and math.isfinite(high)
