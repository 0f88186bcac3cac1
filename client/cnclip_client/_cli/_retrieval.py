"""What `cnclip search` and `cnclip evaluate` share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cnclip_client._extras import require
from cnclip_client.retrieval import Direction, Features, Gallery, read_features

__all__ = ["ImageFeatures", "MemoryMib", "Normalize", "TextFeatures", "gallery", "queries"]

ImageFeatures = typer.Option(
    "--image-feats", metavar="FILE", help="Image features: .jsonl, .parquet (or a folder) or .npy."
)
TextFeatures = typer.Option("--text-feats", metavar="FILE", help="Text features, likewise.")
Normalize = Annotated[
    bool, typer.Option("--normalize", help="Divide each feature by its length; extracted ones are so already.")
]
MemoryMib = Annotated[
    int,
    typer.Option(min=0, help="MiB of features to hold; what is searched goes to a temporary file past it."),
]


def queries(direction: Direction, images: Path, texts: Path, normalize: bool) -> Iterator[Features]:
    """Reads the features that ask."""
    if direction == "text-to-image":
        return read_features(texts, "text", normalize=normalize)
    return read_features(images, "image", normalize=normalize)


def gallery(direction: Direction, images: Path, texts: Path, normalize: bool, memory_mib: int) -> Gallery:
    """Reads the features that are searched."""
    require("faiss", extra="search")  # before minutes of reading
    other: Direction = "image-to-text" if direction == "text-to-image" else "text-to-image"
    return Gallery(queries(other, images, texts, normalize), memory_bytes=memory_mib * 1024 * 1024)
