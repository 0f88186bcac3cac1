"""img2dataset's folders: samples as files, beside the tables and figures of what was fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cnclip_client._blame import is_of_all
from cnclip_client._exceptions import BadFile
from cnclip_client._parquet import is_no_data
from cnclip_client._remote import Location, RemotePath
from cnclip_client._vocabulary import Kind
from cnclip_client.sources._files import FolderSource
from cnclip_client.sources._item import Item, Place
from cnclip_client.sources._samples import IMAGE_ENDINGS, MOST_TEXT_BYTES, Part, Wanted, items_of
from cnclip_client.sources._tar_file import TornTar
from cnclip_client.sources._webdataset import PACKED_ENDINGS, TAR_ENDINGS

__all__ = ["Glance", "SampleFolderSource"]

_STATISTICS = re.compile(r"\d+_stats\.json")
_BESIDE = re.compile(r"\d+(_stats\.json|\.parquet|\.csv|\.json)")
# Endings that no image has; most are those of files that commands of ours write.
_NO_IMAGES = frozenset(
    [
        "json",
        "jsonl",
        "npy",
        "npz",
        "faiss",
        "txt",
        "csv",
        "tsv",
        "html",
        "onnx",
        "pt",
        "mdb",
        "arrow",
        "pkl",
        "h5",
        "tfrecord",
    ]
)
_NO_FILE = "a link that leads nowhere, or a device"


class Glance:
    """What the names in a folder, without those in the folders in it, say of what it is.

    Attributes:
        tars: Whether there are tars, and no images beside them.
        parquet: Whether there are parquet files.
        samples: Whether img2dataset wrote it as files: `00000/`, and its `00000_stats.json` beside it.
        no_image: The name of one of its files, if all that is in it are files that no images are; else empty.
    """

    def __init__(self, folder: Location) -> None:
        tars = images = parquet = others = False
        no_image = ""
        shards, fetched = set(), set()
        for name, is_folder in folder.names() if isinstance(folder, RemotePath) else _names(folder):
            # In a loop, and without keeping the names: there may be millions.
            if is_folder:
                others = True
                if name.isdecimal():
                    shards.add(name)
                continue
            ending = name.lower().rpartition(".")[2]
            if ending in _NO_IMAGES:
                no_image = no_image or name
            else:
                others = True
            tars = tars or name.lower().endswith((*TAR_ENDINGS, *PACKED_ENDINGS))
            images = images or ending in IMAGE_ENDINGS
            parquet = parquet or (ending == "parquet" and not is_no_data(name))
            if _STATISTICS.fullmatch(name):
                fetched.add(name.partition("_")[0])
        self.tars = tars and not images
        self.parquet = parquet
        self.samples = bool(shards & fetched)
        self.no_image = "" if others else no_image


def _names(folder: Path) -> Iterator[tuple[str, bool]]:
    with os.scandir(folder) as scanned:
        for entry in scanned:
            if not entry.name.startswith("."):
                is_folder = False
                with suppress(OSError):  # of a link to itself
                    is_folder = entry.is_dir()
                yield entry.name, is_folder


@dataclass(frozen=True, slots=True)
class SampleFolderSource:
    """Samples as files in folders; ids are their keys, as they are in img2dataset's tars and parquet files.

    Attributes:
        path: The folder above.
        wanted: What of each sample.
    """

    path: Location
    wanted: Wanted

    @property
    def kind(self) -> Kind:
        """Whether the items are images or texts."""
        return self.wanted.kind

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        more = {"id_column": self.wanted.id_column, "column": self.wanted.column}
        return {"format": "samples", "path": str(self.path.absolute()), **more}

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        for item in items_of(self._parts(after), self.wanted, start if after else 0, start, start + ids_only):
            # Its folder is img2dataset's shard, of which the key says the number by itself.
            yield replace(item, id=item.id.rpartition("/")[2]) if isinstance(item.id, str) else item

    def total(self) -> int | None:
        return sum(1 for _ in items_of(self._parts(()), self.wanted, 0, 0, 2**62))

    def _parts(self, after: Place) -> Iterator[Part]:
        last = after
        for file in FolderSource(self.path).items(after=after):
            name = str(file.id)
            if _BESIDE.fullmatch(name):
                continue
            if name.endswith("/"):  # a folder of samples that nobody can name
                place = str(self.path / name)
                raise BadFile(f"{file.failure}; have it made readable, or move it elsewhere", path=place)
            path = file.value if isinstance(file.value, str) else None
            what = _NO_FILE if file.failure else ""
            yield Part(name, what, -1, lambda path=path: self._value(path), last, file.after)  # type: ignore[misc]
            last = file.after

    def _value(self, path: str | None) -> str | bytes:
        if path is None:
            return b""
        if self.kind == "image" and not path.lower().endswith(".json"):
            return path  # read later, and by many threads
        if "://" in path:
            return RemotePath(path).read(MOST_TEXT_BYTES + 1)
        try:
            with Path(path).open("rb") as file:
                return file.read(MOST_TEXT_BYTES + 1)
        except OSError as error:
            if is_of_all(error):
                raise
            raise TornTar(f"cannot be read: {error.strerror}") from error
