"""The LMDB that cn_clip's `preprocess/build_lmdb_dataset.py` makes of a MUGE TSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from cnclip_client._flow.items import too_large
from cnclip_client.sources._item import Item, Place, parse_id, told_by
from cnclip_client.sources._lmdb_file import LmdbFile
from cnclip_client.sources._muge import decode_base64

__all__ = ["LmdbSource", "imgs_folder"]

_COUNT_KEY = b"num_images"


def imgs_folder(path: Path) -> Path | None:
    """Returns the folder of images, given it or the one above, or None if there is none."""
    return next((one for one in (path, path / "imgs") if (one / "data.mdb").is_file()), None)


@dataclass(frozen=True, slots=True)
class LmdbSource:
    """Base64 values under image ids, in the order of the keys' bytes.

    Attributes:
        path: The folder `imgs`.
        item_bytes: The largest image taken, in bytes.
    """

    path: Path
    item_bytes: int
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        return {**told_by("lmdb", self.path / "data.mdb"), "path": str(self.path.absolute())}

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        last = str(after[0]).encode("utf-8", "surrogateescape") if after else b""
        with LmdbFile(self.path / "data.mdb") as file:
            entries = ((key, value) for key, value in file.items(last) if key != _COUNT_KEY)
            for number, (key, value) in enumerate(islice(entries, 0 if after else start, None)):
                name = key.decode("utf-8", "surrogateescape")
                one, place = parse_id(name), (name,)
                if number < ids_only:
                    yield Item(one, None, after=place)
                elif value.size > self.item_bytes * 4 // 3 + 64:
                    yield Item(one, None, too_large(self.item_bytes), place)
                else:
                    yield self._item(one, file.read(value), place)

    def _item(self, one: int | str, value: bytes, after: Place) -> Item:
        try:
            return Item(one, decode_base64(value.strip(), self.item_bytes), after=after)
        except ValueError as error:
            return Item(one, None, str(error), after)

    def total(self) -> int | None:
        with LmdbFile(self.path / "data.mdb") as file:
            return max(file.entries - 1, 0)  # that of the images' number
