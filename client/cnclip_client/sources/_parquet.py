"""Parquet files: a column of ids, and one of texts, encoded images or paths of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client._parquet import opened_parquet, parquet_places, parquet_states
from cnclip_client._remote import Location, state_digest
from cnclip_client._vocabulary import Kind
from cnclip_client.sources._item import Item, Place, checked_id

__all__ = ["ParquetSource"]

_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "image": ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "path", "image_path"),
    "text": ("text", "caption"),
}
# `key`: img2dataset's.
_ID_COLUMNS: dict[Kind, tuple[str, ...]] = {"image": ("image_id", "id", "key"), "text": ("text_id", "id", "key")}
# Rows decoded at once: images may be large, texts and ids are not.
_ROWS: dict[Kind, int] = {"image": 32, "text": 4096}
_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """The rows of one or more files, in their order; a piece of a row group is in memory at a time.

    Attributes:
        path: The file, or a folder of them.
        kind: Whether the items are images or texts.
        id_column: Of integers or strings; without one, `image_id` or `text_id`, `id` or img2dataset's `key`, or the
            row's number from 0.
        column: Of strings, which for images are paths relative to the current folder, of encoded images, or of
            Hugging Face's `{bytes, path}`; without one, the first that there is of some usual names.
    """

    path: Location
    kind: Kind
    id_column: str | None = None
    column: str | None = None

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        states = parquet_states(self.path)
        return {
            "format": "parquet",
            "path": str(self.path.absolute()),
            "size_bytes": sum(state.size_bytes for state in states),
            "files": state_digest(states),
            "id_column": self.id_column,
            "column": self.column,
        }

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        # Which file comes first, and how many of its rows are passed over, or of all where that is not known.
        first, passed = (int(one) for one in after) if after else (0, start)
        row = start
        for number, file in enumerate(parquet_places(self.path)):
            if number < first:
                continue
            with opened_parquet(file, buffer_size=_BUFFER_BYTES) as opened:
                rows = opened.metadata.num_rows
                skipped = min(passed, rows)
                items = self._rows(file, opened, row, skipped, start + ids_only)
                for place, item in enumerate(items, start=skipped + 1):
                    yield Item(item.id, item.value, item.failure, (number, place))
                row += rows - skipped
                passed -= skipped

    def _rows(self, file: Location, opened: Any, row: int, passed: int, wanted: int) -> Iterator[Item]:
        """Yields a file's items without the first ones.

        Args:
            file: It.
            opened: It, open.
            row: The number, among all items of the source, of the first that comes out.
            passed: How many rows are left out.
            wanted: The number of the first item whose value is wanted.
        """
        id_column, column = self._columns(file, opened.schema_arrow)
        value_of = _reader(file, self.kind, opened.schema_arrow.field(column))
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            skipped = min(passed, rows)
            passed -= skipped
            if skipped == rows:
                continue
            # Texts are told apart by their words as well, and are read in any case.
            if self.kind == "image" and row + rows - skipped <= wanted:
                of_group = range(row - skipped, row - skipped + rows)
                for one in islice(_column(opened, group, id_column) if id_column else of_group, skipped, None):
                    yield _item(row, one)
                    row += 1
                continue
            for batch in opened.iter_batches(
                _ROWS[self.kind], row_groups=[group], columns=[name for name in (id_column, column) if name]
            ):
                ahead = min(skipped, batch.num_rows)
                skipped -= ahead
                rest = batch.slice(ahead)
                ids = rest.column(id_column).to_pylist() if id_column else range(row, row + rest.num_rows)
                for one, value in zip(ids, rest.column(column), strict=True):
                    yield _item(row, one, partial(_value, value_of, value))
                    row += 1

    def _columns(self, file: Location, schema: Any) -> tuple[str | None, str]:
        id_column = self.id_column or next((name for name in _ID_COLUMNS[self.kind] if name in schema.names), None)
        column = self.column or next((name for name in _COLUMNS[self.kind] if name in schema.names), None)
        missing = [name for name in (self.id_column, self.column) if name and name not in schema.names]
        names = ", ".join(schema.names)
        twice = [name for name in (id_column, column) if name and schema.names.count(name) > 1]
        if missing:
            raise BadFile(f"no column {' or '.join(missing)} among {names}", path=str(file))
        if twice:
            raise BadFile(f"has several columns {twice[0]}; rename them, or name another", path=str(file))
        if column is None:
            raise BadFile(f"which column holds the {self.kind}s? name it with --column: {names}", path=str(file))
        if id_column is not None:
            types, of = require("pyarrow", extra="parquet").types, schema.field(id_column).type
            if not (types.is_integer(_plain(of)) or is_string(of)):
                raise BadFile(f"ids are integers or strings, and {id_column} is {of}; name another", path=str(file))
        return id_column, column

    def total(self) -> int:
        count = 0
        for file in parquet_places(self.path):
            with opened_parquet(file) as opened:
                count += opened.metadata.num_rows
        return count

    def numbers(self) -> range | None:
        """Returns the ids; None where a column has them, and of paths, as files have names beside their ids."""
        for file in parquet_places(self.path):
            with opened_parquet(file) as opened:
                id_column, column = self._columns(file, opened.schema_arrow)
                paths = self.kind == "image" and is_string(opened.schema_arrow.field(column).type)
                if id_column is not None or paths:
                    return None
        return range(self.total())


def _column(opened: Any, group: int, name: str) -> Iterator[Any]:
    for batch in opened.iter_batches(_ROWS["text"], row_groups=[group], columns=[name]):
        yield from batch.column(name).to_pylist()


def _item(row: int, one: Any, value: Callable[[], str | bytes | None] = lambda: None) -> Item:
    try:
        one = checked_id(one)
    except ValueError as error:
        return Item(f"row {row}", None, str(error))
    try:
        return Item(one, value())
    except ValueError as error:
        return Item(one, None, str(error))


def _value(value_of: Callable[[Any], str | bytes], value: Any) -> str | bytes:
    return value_of(value.as_py())


def _plain(of: Any) -> Any:
    """Returns the type of a dictionary's values, or else the type itself."""
    return of.value_type if require("pyarrow", extra="parquet").types.is_dictionary(of) else of


def is_string(of: Any) -> bool:
    """Whether a type is one of strings, encoded by a dictionary or not."""
    types, of = require("pyarrow", extra="parquet").types, _plain(of)
    return bool(types.is_string(of) or types.is_large_string(of) or types.is_string_view(of))


def _reader(file: Location, kind: Kind, field: Any) -> Callable[[Any], str | bytes]:
    """Returns what makes an item's value of a column's, by the column's type; it raises ValueError for a bad one."""
    types = require("pyarrow", extra="parquet").types
    of = _plain(field.type)
    is_binary = types.is_binary(of) or types.is_large_binary(of) or types.is_binary_view(of)
    if is_string(of) or (is_binary and kind == "image"):
        return _present
    fields = {inner.name for inner in field.flatten()} if types.is_struct(field.type) else set()
    if kind == "image" and fields & {f"{field.name}.bytes", f"{field.name}.path"}:
        return lambda value: _present((value or {}).get("bytes") or (value or {}).get("path"))
    wanted = "strings" if kind == "text" else "encoded images, paths or {bytes, path}"
    raise BadFile(f"{field.name} is {field.type}, and not of {wanted}; name another column", path=str(file))


def _present(value: Any) -> str | bytes:
    if value is None:
        raise ValueError("is null")
    return value  # type: ignore[no-any-return]
