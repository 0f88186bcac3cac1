"""The images and texts that are measured with: the user's, or those that the builder brings along."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from cnclip_builder.tensors import Tower

__all__ = ["captions", "count_of", "images", "repeated"]

_T = TypeVar("_T")


def images(folder: Path | None, resolution: int) -> list[bytes]:
    """Gives encoded images: every file of a folder that decodes, or the builder's samples.

    Args:
        folder: Where they are; None for the samples.
        resolution: That they are resized to.

    Raises:
        ValueError: None decodes.
    """
    from cnclip_builder.parity.samples import sample_images
    from cnclip_pixels import BadImage, decode_pixels

    if folder is None:
        return list(sample_images().values())
    good = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        try:
            decode_pixels(data, resolution)
        except BadImage:
            continue
        good.append(data)
    if not good:
        raise ValueError(f"no file in {folder} is an image; name another folder")
    return good


def captions(file: Path | None) -> list[str]:
    """Gives texts: a file's lines, or the builder's captions.

    Raises:
        ValueError: The file has none, or is not UTF-8.
    """
    from cnclip_builder.parity.samples import sample_texts

    if file is None:
        return [text for text in sample_texts() if text.strip()]
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 (GBK?); convert it (iconv -f GB18030 -t UTF-8)") from None
    if not lines:
        raise ValueError(f"{file} has no line with a text; name another file")
    return lines


def count_of(tower: Tower, items: int) -> int:
    """How many of a tower make a round of so many items: images, and four times as many texts, which take less."""
    return items if tower == "image" else 4 * items


def repeated(items: Sequence[_T], count: int) -> list[_T]:
    """The first `count` of the items, over and over."""
    return list(islice(cycle(items), count))
