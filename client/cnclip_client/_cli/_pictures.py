"""The images and texts of a report, by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from cnclip_client._exceptions import BadFile, StoreError
from cnclip_client._remote import RemotePath, is_remote
from cnclip_client.report._thumbnails import names_of_file
from cnclip_client.retrieval import Id
from cnclip_client.sources import Source

__all__ = ["pictures_in", "words_in"]


def pictures_in(source: Source, wanted: Collection[Id]) -> Iterator[tuple[Id, bytes]]:
    """Yields the wanted among the images of a source, with the ids that it gives them.

    A file also goes by its name, and by that without its ending, for features whose ids were made elsewhere; an integer
    by its digits, as in a parquet file whose other ids are strings.
    """
    for item in source.items():
        if isinstance(item.value, str):
            for one in (item.id, str(item.id), *names_of_file(item.value)):
                if one in wanted and (data := _read(item.value)):
                    yield one, data
        elif item.value is not None:
            yield item.id, item.value
            yield str(item.id), item.value


def words_in(source: Source, wanted: Collection[Id]) -> Iterator[tuple[Id, str]]:
    """Yields the wanted among the texts of a source, with the ids that it gives them; read until all are found.

    An integer also goes by its digits here.
    """
    missing = set(wanted)
    items = source.items()
    while missing and (item := next(items, None)) is not None:
        for one in (item.id, str(item.id)):
            if one in missing and isinstance(item.value, str):
                missing.discard(one)
                yield one, item.value


def _read(path: str) -> bytes:
    """Returns what is in a file; nothing of one that cannot be read, which the page then says is not among them."""
    try:
        if is_remote(path):
            return RemotePath(path).read()
        return Path(path).read_bytes() if Path(path).is_file() else b""
    except (OSError, BadFile, StoreError):
        return b""
