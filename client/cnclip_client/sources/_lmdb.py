"""The LMDB that cn_clip's `preprocess/build_lmdb_dataset.py` makes of a MUGE TSV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client.sources._item import Item, parse_id
from cnclip_client.sources._muge import decode_base64

__all__ = ["LmdbSource", "imgs_folder"]

_COUNT_KEY = b"num_images"
# Pages that were read count as this process's memory until the file is unmapped.
_MAPPED_BYTES = 128 * 1024 * 1024


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
        size = (self.path / "data.mdb").stat().st_size
        return {"format": "lmdb", "path": str(self.path.absolute()), "size_bytes": size}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        last: bytes | None = None
        seen = 0
        while True:
            mapped = 0
            with self._transaction() as (_, transaction):
                cursor = transaction.cursor()
                found = cursor.first() if last is None else cursor.set_range(last) and cursor.next()
                while found and mapped < _MAPPED_BYTES:
                    last = cursor.key()
                    if last != _COUNT_KEY:
                        value = None if seen < ids_only else cursor.value()
                        seen += 1
                        mapped += len(value or b"")
                        yield self._item(last, value)
                    found = cursor.next()
            if not found:
                return

    def _item(self, key: bytes, value: bytes | None) -> Item:
        one = parse_id(key.decode("utf-8", "surrogateescape"))
        if value is None:
            return Item(one, None)
        try:
            return Item(one, decode_base64(value.strip(), self.item_bytes))
        except ValueError as error:
            return Item(one, None, str(error))

    def total(self) -> int | None:
        with self._transaction() as (environment, transaction):
            counted = transaction.get(_COUNT_KEY) is not None
            return int(environment.stat()["entries"]) - counted

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Any, Any]]:
        lmdb = require("lmdb", extra="lmdb")
        try:
            # As cn_clip opens it: without a lock file, so a data set on a read-only disk will do.
            environment = lmdb.open(os.fspath(self.path), readonly=True, create=False, lock=False, readahead=False)
        except lmdb.Error as error:
            raise BadFile(f"no LMDB ({error}); give the folder that holds data.mdb", path=str(self.path)) from error
        with environment, environment.begin() as transaction:
            yield environment, transaction
