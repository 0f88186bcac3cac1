"""What `cnclip search` and `cnclip evaluate` share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client._parquet import parquet_files, told_parquet
from cnclip_client.retrieval import Direction, Features, Gallery, read_features
from cnclip_client.retrieval._gallery import RepeatedId

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
    path = images if direction == "text-to-image" else texts
    try:
        return Gallery(queries(other, images, texts, normalize), memory_bytes=memory_mib * 1024 * 1024)
    except RepeatedId as error:
        places = _places(path, error.rows) if path.is_dir() else ""
        raise BadFile(str(RepeatedId(error.id, error.rows, error.count, places)), path=str(path)) from error
    except ValueError as error:
        raise BadFile(str(error), path=str(path)) from error


def _places(folder: Path, rows: tuple[int, int]) -> str:
    """Returns in which files of a folder, and where in them, some rows are."""
    parquet = require("pyarrow.parquet", extra="parquet")
    places, start = [], 0
    for file in parquet_files(folder):
        with told_parquet(file):
            end = start + parquet.read_metadata(file).num_rows
        places += [f"{file.relative_to(folder)} row {row - start + 1}" for row in rows if start <= row < end]
        start = end
    return " and ".join(places)
