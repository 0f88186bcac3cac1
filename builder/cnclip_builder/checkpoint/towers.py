"""The two encoders of a checkpoint as PyTorch modules: the reference of everything that is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from cnclip_builder.checkpoint.load import Checkpoint, make_meta_model
from cnclip_builder.checkpoint.soundness import COUNTER
from cnclip_builder.cn_clip import convert_weights

if TYPE_CHECKING:
    from cnclip_builder.tensors import Tower


class ImageTower(torch.nn.Module):
    """`image` float32 `[N, 3, R, R]` -> un-normalised features `[N, D]`, as `CLIP.encode_image`."""

    def __init__(self, clip: torch.nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes images."""
        features: torch.Tensor = self.clip.encode_image(image)  # type: ignore[operator]
        return features


class TextTower(torch.nn.Module):
    """`text` int64 `[N, L]` -> un-normalised features `[N, D]`, as `CLIP.encode_text`."""

    def __init__(self, clip: torch.nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Encodes texts."""
        features: torch.Tensor = self.clip.encode_text(text)  # type: ignore[operator]
        return features


def load_tower(checkpoint: Checkpoint, tower: Tower) -> torch.nn.Module:
    """Makes one encoder in FP32, equal to what `cn_clip.clip.load_from_name` gives on a CPU.

    cn_clip keeps matrix weights in FP16 before it turns the model back into FP32, so that they are rounded; the
    same is done here. transformers does not, so that a model of its kind is left as it is. The other encoder stays
    without storage: only this one's tensors are read from the file.

    Returns:
        An `ImageTower` or a `TextTower` in eval mode.
    """
    clip = make_meta_model(checkpoint.arch)
    if not checkpoint.of_transformers:
        convert_weights(clip)  # on the meta device this only says which tensors cn_clip rounds
    tensors = {
        name: _as_cn_clip_rounds(checkpoint.state_dict[name], like.dtype)
        for name, like in clip.state_dict().items()
        if name.startswith("visual.") == (tower == "image") and not name.endswith(COUNTER)
    }
    clip.float()
    clip.load_state_dict(tensors, strict=False, assign=True)
    clip.requires_grad_(False)
    return (ImageTower(clip) if tower == "image" else TextTower(clip)).eval()


def _as_cn_clip_rounds(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounds a tensor to the type that cn_clip keeps it in, and gives it in FP32 (integers as they are).

    FP32 is rounded in place: the tensor is mapped privately from the file, so that a page of memory then holds
    either the file's content or ours. A copy would hold both, and double the memory that a build needs. One whose
    elements share memory, as those of `expand()`, can't be written to.
    """
    if dtype == torch.float16 and tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor.copy_(tensor.half())
    return tensor.to(dtype).float() if dtype.is_floating_point else tensor


def encode(tower: torch.nn.Module, inputs: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Runs an encoder row by row, so that a large batch takes no more memory than one sample.

    Args:
        tower: from `load_tower`.
        inputs: `image` float32 `[N, 3, R, R]` or `text` int64 `[N, L]`.

    Returns:
        Un-normalised features, float32 `[N, D]`.
    """
    with torch.inference_mode():
        rows = [tower(torch.from_numpy(inputs[index : index + 1])) for index in range(len(inputs))]
    features: npt.NDArray[np.float32] = torch.cat(rows).numpy()
    return features
