"""The images and texts of a report, by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from cnclip_client._cli._retrieval import Asked
from cnclip_client._exceptions import BadFile, StoreError
from cnclip_client._remote import RemotePath, is_remote
from cnclip_client.report._thumbnails import names_of_file
from cnclip_client.retrieval import Features, Id
from cnclip_client.sources import Source
from cnclip_client.sources._item import parse_id
from cnclip_client.sources._muge import LinesSource
from cnclip_client.sources._parquet import ParquetSource

__all__ = ["pictures_in", "queries_with_ids", "words_in"]


def pictures_in(source: Source, wanted: Collection[Id]) -> Iterator[tuple[Id, bytes]]:
    """Yields the wanted among the images of a source, with the ids that it gives them.

    An integer also goes by its digits, as in a parquet file whose other ids are strings. For features whose ids were
    made elsewhere, a file goes by its name, too, and by that without its ending, where that is no other one's id.
    """
    missing = set(wanted)
    named: dict[Id, str] = {}
    for item in source.items():
        own = {item.id, str(item.id)}
        if isinstance(item.value, str):
            if found := missing & own:
                missing -= found  # read or not: another one's picture must not stand for it
                if data := _read(item.value):
                    yield from ((one, data) for one in found)
            for one in names_of_file(item.value):
                if one in missing:
                    named.setdefault(one, item.value)
        elif item.value is not None:
            yield from ((one, item.value) for one in own)
    for one, path in named.items():
        if one in missing and (data := _read(path)):
            yield one, data


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


def queries_with_ids(asked: Asked, sources: Iterable[Source]) -> Iterator[Features]:
    """Yields the queries of a search; sees that features have ids of the sources that number their items.

    Raises:
        BadFile: There is a feature of no such number: of numbers that both have, the page would show the wrong item.
    """
    asking = asked.direction.partition("-")[0]
    of_queries = []
    for source in sources:
        if isinstance(source, LinesSource | ParquetSource) and (numbers := source.numbers()) is not None:
            if source.kind == asking:
                of_queries.append((source, numbers))
            else:
                _require_numbers(source, numbers, asked.searched_ids())
    for block in asked.queries:
        for source, numbers in of_queries:
            _require_numbers(source, numbers, block.ids.tolist())
        yield block


def _require_numbers(source: LinesSource | ParquetSource, numbers: range, ids: Iterable[Id]) -> None:
    for one in ids:
        if parse_id(str(one)) not in numbers:
            counted = f"{numbers.start} to {numbers.stop - 1}" if numbers else "of which there are none"
            raise BadFile(
                f"its {source.kind}s go by their numbers, {counted}, and there is a feature of {one!r}: give what the "
                f"features are of, or .parquet with a column {source.kind}_id",
                path=str(source.path),
            )


def _read(path: str) -> bytes:
    """Returns what is in a file; nothing of one that cannot be read, which the page then says is not among them."""
    try:
        if is_remote(path):
            return RemotePath(path).read()
        return Path(path).read_bytes() if Path(path).is_file() else b""
    except (OSError, BadFile, StoreError):
        return b""
