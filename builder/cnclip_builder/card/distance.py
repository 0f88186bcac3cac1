"""How far a card's pixels, and the features of them, are from exact ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cnclip_card import Card
from cnclip_pixels import BadImage, decode_pixels

from cnclip_builder.errors import SettingError
from cnclip_builder.parity.distance import Parity, measure_parity
from cnclip_builder.parity.probes import normalise

# Decoded at once, as a server would.
_BATCH = 8


@dataclass(frozen=True)
class CardDistance:
    """Measured distances between what a card makes of images and what the exact way does.

    Attributes:
        decoded_by: what decoded on the card, in words.
        images: how many were compared.
        exact_share: of them, which part the card left to the exact way, or could not decode.
        largest_pixel_difference: in grey levels, of the images that the card decoded.
        mean_pixel_difference: in grey levels, of the same.
        features: of PyTorch's encoder, from the card's pixels and from exact ones, the worst of all rows.
    """

    decoded_by: str
    images: int
    exact_share: float
    largest_pixel_difference: int
    mean_pixel_difference: float
    features: Parity

    def as_dict(self) -> dict[str, Any]:
        """The figures for a manifest."""
        return asdict(self)


def measure_card(
    card: Card,
    images: Mapping[str, bytes],
    side: int,
    encode: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
) -> CardDistance:
    """Compares a card's pixels with exact ones.

    Args:
        card: what decodes.
        images: encoded images by name; those that the exact way refuses do not count.
        side: of the pixels' square.
        encode: gives the features, `[N, D]`, of images as cn_clip's transform hands them on, float32 `[N, 3, R, R]`.

    Raises:
        SettingError: no image is left.
    """
    exact: list[npt.NDArray[np.uint8]] = []
    ours: list[npt.NDArray[np.uint8]] = []
    on_card = 0
    differences: list[npt.NDArray[np.int16]] = []
    files = list(images.values())
    for start in range(0, len(files), _BATCH):
        known = {file: pixels for file in files[start : start + _BATCH] if (pixels := _exact(file, side)) is not None}
        prepared = card.prepare(list(known), lambda others, known=known: map(known.get, others))  # type: ignore[misc]
        on_card += prepared.on_card
        for row, pixels in enumerate(known.values()):
            made = prepared.rows[row]
            if made is None and prepared.squares is not None:
                made = prepared.squares.read(row)
                differences.append(np.abs(made.astype(np.int16) - pixels))
            exact.append(pixels)
            ours.append(made)
    if not exact:
        raise SettingError("none of the images to compare can be decoded: name a folder of pictures")
    return CardDistance(
        decoded_by=card.about,
        images=len(exact),
        exact_share=1 - on_card / len(exact),
        largest_pixel_difference=max((int(one.max()) for one in differences), default=0),
        mean_pixel_difference=float(np.mean([one.mean() for one in differences])) if differences else 0.0,
        features=measure_parity(encode(normalise(np.stack(ours))), encode(normalise(np.stack(exact)))),
    )


def _exact(file: bytes, side: int) -> npt.NDArray[np.uint8] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return decode_pixels(file, side)
        except BadImage:
            return None
