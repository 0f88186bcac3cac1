"""JPEGs decoded and resized on a GPU: by nvImageCodec, and by kernels with Pillow's own arithmetic.

It takes what it is sure of, and gives the pixels of that alone: whoever asks has the rest decoded as ever. So nothing
is refused here, and only the decoder differs from the exact way.
"""

from __future__ import annotations

from cnclip_card._card import Card, Prepared, Squares, open_card
from cnclip_card._errors import CardUnfit

__all__ = ["Card", "CardUnfit", "Prepared", "Squares", "open_card"]
