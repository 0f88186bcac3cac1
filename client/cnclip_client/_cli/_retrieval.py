"""What `cnclip search` and `cnclip evaluate` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from cnclip_console import option

from cnclip_client._cli._progress import StageReport, told_of
from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client._parquet import parquet_files, parquet_metadata
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.index import Index
from cnclip_client.retrieval import Direction, Features, Gallery, Hits, read_features, search
from cnclip_client.retrieval._gallery import RepeatedId

__all__ = [
    *("Asked", "ImageFeatures", "IndexOption", "IndexParameters", "MemoryMib", "Normalize", "TextFeatures"),
    *("asked_of_features", "asked_of_index"),
]

_IDS = 8192  # at once in memory
_TOLD = 256  # queries between two reports

ImageFeatures = option("Image features: .jsonl, .parquet (or a folder) or .npy.", "--image-feats", metavar="FILE")
TextFeatures = option("Text features, likewise.", "--text-feats", metavar="FILE")
IndexOption = Annotated[
    Path | None, option("What `cnclip index` made, instead of the features it is of.", "--index", metavar="FOLDER")
]
IndexParameters = Annotated[
    str | None, option("What to turn of the index, such as efSearch=256 or nprobe=64,rescore=400.", metavar="STRING")
]
Normalize = Annotated[bool, option("Divide each feature by its length; extracted ones are so already.", "--normalize")]
MemoryMib = Annotated[int, option("MiB of features to hold; what is searched goes to a temporary file past it.", min=0)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is searched, and what asks it.

    Attributes:
        searched: Features, all of which are compared, or an index of such.
        direction: What asks for what.
        queries: The features that ask, which are read once.
        report: Told how many have asked.
    """

    searched: Gallery | Index
    direction: Direction
    queries: Iterator[Features]
    report: StageReport

    def searched_ids(self) -> Iterator[Id]:
        """Yields the ids of all that is searched."""
        rows = len(self.searched)
        for start in range(0, rows, _IDS):
            if isinstance(self.searched, Index):
                yield from self.searched.ids_of(range(start, min(start + _IDS, rows)))
            else:
                yield from self.searched.ids[start : start + _IDS].tolist()

    def hits(self, queries: Iterable[Features], *, k: int = 10) -> Iterator[Hits]:
        """Yields what some of the queries find, the best k of each."""
        found = (
            self.searched.search(queries, k=k)
            if isinstance(self.searched, Index)
            else search(queries, self.searched, k=k)
        )
        self.report("searching", 0, 0)
        for done, hits in enumerate(found, start=1):
            if done % _TOLD == 0:
                self.report("searching", done, 0)
            yield hits


@contextmanager
def asked_of_features(
    direction: Direction, images: Path, texts: Path, normalize: bool, memory_mib: int, report: StageReport
) -> Iterator[Asked]:
    """Reads the features that are searched, and opens those that ask."""
    require("faiss", extra="search")  # before minutes of reading
    sides: list[tuple[Path, Kind]] = [(texts, "text"), (images, "image")]
    asking, searched = sides if direction == "text-to-image" else sides[::-1]
    path = searched[0]
    try:
        features = told_of(read_features(*searched, normalize=normalize), "reading", report)
        gallery = Gallery(features, memory_bytes=memory_mib * 1024 * 1024)
    except RepeatedId as error:
        places = _places(path, error.rows) if path.is_dir() else ""
        raise BadFile(str(RepeatedId(error.id, error.rows, error.count, places)), path=str(path)) from error
    except ValueError as error:
        raise BadFile(str(error), path=str(path)) from error
    with gallery:
        yield Asked(gallery, direction, read_features(*asking, normalize=normalize), report)


@contextmanager
def asked_of_index(
    folder: Path,
    images: Path | None,
    texts: Path | None,
    normalize: bool,
    parameters: str | None,
    report: StageReport,
) -> Iterator[Asked]:
    """Opens an index, and the features that ask it."""
    with Index.open(folder) as index:
        of_images = index.record.kind == "image"
        asking, other = (texts, images) if of_images else (images, texts)
        if asking is None or other is not None:
            wanted = "--text-feats" if of_images else "--image-feats"
            raise typer.BadParameter(
                f"{folder} is an index of {index.record.kind}s; give {wanted} with it, and no others"
            )
        index.require_checkpoint_of(asking)
        if parameters is not None:
            index.parameters = parameters
        queries = read_features(asking, "text" if of_images else "image", normalize=normalize)
        direction: Direction = "text-to-image" if of_images else "image-to-text"
        yield Asked(index, direction, queries, report)


def _places(folder: Path, rows: tuple[int, int]) -> str:
    """Returns in which files of a folder, and where in them, some rows are."""
    places, start = [], 0
    for file in parquet_files(folder):
        end = start + parquet_metadata(file).num_rows
        places += [f"{file.relative_to(folder)} row {row - start + 1}" for row in rows if start <= row < end]
        start = end
    return " and ".join(places)
