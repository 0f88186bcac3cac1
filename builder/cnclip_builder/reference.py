"""What servers are compared with: the features of cn_clip's own transform, tokeniser and model, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import Checkpoint, load_checkpoint
from cnclip_builder.parity.samples import sample_images, sample_texts
from cnclip_builder.prepared import tokenize_as_cn_clip, transform_as_cn_clip


class Reference:
    """PyTorch's features of some images and texts, each computed once, for as many servers as are compared with them.

    The checkpoint is loaded when it is asked for. Imports torch then.

    Args:
        path: the checkpoint's file.
        arch: its architecture.
        images: encoded images by name; by default real ones of odd shapes and modes.
        texts: by default real captions and odd texts.

    Attributes:
        arch: the architecture.
        images: the images, in the order of their features.
    """

    def __init__(
        self,
        path: Path,
        arch: Arch,
        images: Mapping[str, bytes] | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        self.arch = arch
        self.images = sample_images() if images is None else images
        self._path = path
        self._texts = texts
        self._image_features: dict[bool, npt.NDArray[np.float32]] = {}
        self._text_features: dict[int, npt.NDArray[np.float32]] = {}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, loaded.

        Raises:
            CheckpointError: it cannot be.
        """
        return load_checkpoint(self._path, self.arch)

    def texts(self, context_length: int) -> Sequence[str]:
        """The texts, in the order of their features.

        By default one of them fills the context: what a build proves has 52 tokens at most.
        """
        if self._texts is not None:
            return self._texts
        texts = sample_texts()
        captions = "".join(texts[:16])
        return [*texts, (captions * -(-context_length // len(captions)))[:context_length]]

    def image_features(self, *, reduced: bool = False) -> npt.NDArray[np.float32]:
        """Features of the images, `[N, embedding size]`, not normalised; of large JPEGs at a reduced scale if told."""
        if reduced not in self._image_features:
            from cnclip_builder.checkpoint.towers import encode, load_tower

            tower = load_tower(self.checkpoint, "image")
            transformed = (
                transform_as_cn_clip(image, self.arch.resolution, reduced=reduced) for image in self.images.values()
            )
            self._image_features[reduced] = np.concatenate([encode(tower, pixels[None]) for pixels in transformed])
        return self._image_features[reduced]

    def text_features(self, context_length: int) -> npt.NDArray[np.float32]:
        """Features of the texts, `[N, embedding size]`, not normalised; of so many tokens each."""
        if context_length not in self._text_features:
            from cnclip_builder.checkpoint.towers import encode, load_tower

            ids = tokenize_as_cn_clip(self.arch, self.texts(context_length), context_length)
            self._text_features[context_length] = encode(load_tower(self.checkpoint, "text"), ids)
        return self._text_features[context_length]
