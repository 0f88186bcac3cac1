"""The inputs on which artefacts are compared with PyTorch: fixed, varied, and made without a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnclip_builder.arch import Arch
from cnclip_builder.tensors import Tower
from cnclip_builder.vocabulary import read_tokens

# cn_clip.clip.image_transform's Normalize, RGB.
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

_IMAGES = 4
_TEXT_LENGTHS = (3, 5, 9, 14, 20, 31, 44, 52)
_CLS, _SEP = 101, 102  # in cn_clip's vocab.txt
_CJK_TOKENS = (670, 7992)  # the range of its single Chinese characters


@dataclass(frozen=True)
class Probes:
    """Inputs of both encoders.

    Attributes:
        pixels: uint8 `[4, R, R, 3]`, RGB, as the served image encoder takes them.
        text: int64 `[8, L]`, token ids of texts of 3 to L tokens, padded with 0; L is 52, or all that the model takes.
    """

    pixels: npt.NDArray[np.uint8]
    text: npt.NDArray[np.int64]

    def inputs(self, tower: Tower) -> npt.NDArray[np.float32] | npt.NDArray[np.int64]:
        """What cn_clip's encoder takes: `image` float32 `[4, 3, R, R]`, or `text` int64 `[8, L]`."""
        return self.image if tower == "image" else self.text

    def served_inputs(self, tower: Tower) -> npt.NDArray[np.uint8] | npt.NDArray[np.int32]:
        """What a served encoder takes: `pixels` uint8 `[4, R, R, 3]`, or `text` int32 `[8, L]`."""
        return self.pixels if tower == "image" else self.text.astype(np.int32)

    @property
    def image(self) -> npt.NDArray[np.float32]:
        """The pixels as cn_clip's transform hands them to the image encoder: float32 `[4, 3, R, R]`."""
        return normalise(self.pixels)


def make_probes(arch: Arch) -> Probes:
    """Makes the probes of an architecture: coloured noise from coarse to fine, and random Chinese characters."""
    random = np.random.default_rng(20240607)
    images = []
    for index in range(_IMAGES):
        coarse = random.integers(0, 256, size=(2 ** (index + 1), 2 ** (index + 1), 3), dtype=np.uint8)
        repeat = -(-arch.resolution // coarse.shape[0])
        images.append(coarse.repeat(repeat, axis=0).repeat(repeat, axis=1)[: arch.resolution, : arch.resolution])
    start, end, ids = _token_ids(arch)
    lengths = [min(length, arch.max_context_length) for length in _TEXT_LENGTHS]
    text = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
    for row, length in zip(text, lengths, strict=True):
        row[0], row[length - 1] = start, end
        row[1 : length - 1] = ids[random.integers(len(ids), size=length - 2)]
    return Probes(np.stack(images), text)


def _token_ids(arch: Arch) -> tuple[int, int, npt.NDArray[np.int64]]:
    """`[CLS]`, `[SEP]` and what texts are made of: Chinese characters of cn_clip's vocabulary, all words of another.

    Raises:
        SettingError: the vocabulary can't be read.
    """
    if arch.vocabulary is None:
        return _CLS, _SEP, np.arange(*_CJK_TOKENS)
    tokens = read_tokens(arch.vocabulary)
    words = [number for number, token in enumerate(tokens) if token and not token.startswith("[")]
    return tokens.index("[CLS]"), tokens.index("[SEP]"), np.array(words or [tokens.index("[UNK]")])


def normalise(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Does what cn_clip's `ToTensor` and `Normalize` do, in the same float32 steps.

    Args:
        pixels: uint8 `[N, R, R, 3]`.

    Returns:
        float32 `[N, 3, R, R]`.
    """
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    normalised: npt.NDArray[np.float32] = np.ascontiguousarray(
        (scaled - PIXEL_MEAN[:, None, None]) / PIXEL_STD[:, None, None]
    )
    return normalised
