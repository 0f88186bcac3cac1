"""The last step of CLIP: from two sets of features to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["logits_per_image", "softmax"]


def logits_per_image(
    image_features: NDArray[np.float32], text_features: NDArray[np.float32], logit_scale: float
) -> NDArray[np.float32]:
    """Returns float32 [n_images, n_texts], the scaled cosines, as cn_clip's `get_similarity` gives first.

    Args:
        image_features: float32 [n_images, D], L2-normalised.
        text_features: float32 [n_texts, D], L2-normalised.
        logit_scale: What cosines are multiplied by, already exponentiated.
    """
    cosines: NDArray[np.float32] = image_features @ text_features.T
    product: NDArray[np.float32] = cosines * np.float32(logit_scale)
    return product


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns float32 of the same shape, each row the softmax of its logits; a row of none stays empty."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
    chances: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return chances
