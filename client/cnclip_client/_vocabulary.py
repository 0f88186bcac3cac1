"""The words that the whole package has in common."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Direction", "Id", "Kind"]

Kind: TypeAlias = Literal["image", "text"]
"""What an item is, and which of a model's two towers encodes it."""

Id: TypeAlias = int | str
"""An image's or a text's id: as the user's files have it, 7 and "7" being two."""

Direction: TypeAlias = Literal["text-to-image", "image-to-text"]
"""What asks for what: texts for images, or images for texts."""
