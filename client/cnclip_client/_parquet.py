"""What reading parquet takes, whatever is in it: which files are meant, and what is told of a damaged one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile, CnclipError
from cnclip_client._extras import require
from cnclip_client._listing import files_below
from cnclip_client._remote import FileState, Location, RemotePath, state_of

__all__ = ["is_no_data", "opened_parquet", "parquet_files", "parquet_metadata", "parquet_places", "parquet_states"]

# By what a table's folder is known whose log says which of its files count: the others were deleted or replaced.
_LOGS = {"Delta Lake": "_delta_log/*", "Hudi": ".hoodie/*", "Iceberg": "metadata/*.metadata.json"}


def is_no_data(name: str) -> bool:
    """Whether Spark, Hive and pyarrow pass over a file or folder of that name in a folder of parquet.

    They do so with hidden ones, `_temporary`, which failed jobs leave, and `_spark_metadata`; `_day=1` is a partition.
    """
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def parquet_files(path: Path) -> list[Path]:
    """Returns a folder's parquet files, as `files_below` does; or the file.

    Raises:
        BadFile: It is a table whose log says which of its files count.
        OSError: A folder cannot be listed.
    """
    if not path.is_dir():
        return [path]
    _refuse_table(path, lambda pattern: any(path.glob(pattern)))
    return files_below(path, ".parquet", left_out=is_no_data)


def parquet_states(path: Location) -> list[FileState]:
    """Returns what the same files are told by, here or elsewhere. Raises likewise, and what `RemotePath` does."""
    if not isinstance(path, RemotePath):
        return [state_of(file) for file in parquet_files(path)]
    if not path.is_dir():
        return [path.state()]
    # All in one listing, which may be long.
    found = {state.name[len(str(path / "")) :]: state for state in path.find("", left_out=lambda _: False)}
    _refuse_table(path, lambda pattern: any(fnmatchcase(name, pattern) for name in found))
    return [
        state
        for name, state in found.items()
        if name.lower().endswith(".parquet") and not any(map(is_no_data, name.split("/")))
    ]


def parquet_places(path: Location) -> list[Location]:
    """Returns the same files, here or elsewhere. Raises likewise."""
    if isinstance(path, RemotePath):
        return [RemotePath(state.name) for state in parquet_states(path)]
    return [*parquet_files(path)]


def _refuse_table(folder: Location, has: Callable[[str], bool]) -> None:
    """Refuses a folder of which all files would be read, those too that its table has deleted. Raises BadFile."""
    for kind, pattern in _LOGS.items():
        if has(pattern):
            raise BadFile(
                f"is a table of {kind}, whose log says which of its files count; write its rows to a folder of plain "
                "parquet and give that",
                path=str(folder),
            )


@contextmanager
def opened_parquet(path: Location, buffer_size: int = 0) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile`.

    Args:
        path: The file.
        buffer_size: How many bytes of a column are read at once; 0 reads a row group's, which may be GBs of images.

    Raises:
        BadFile: It is damaged, be that seen only as it is read.
        MissingExtra: pyarrow, or what reads a remote file, is not installed.
        OSError: It cannot be read.
    """
    parquet = require("pyarrow.parquet", extra="parquet")
    # Without pre-buffering: otherwise a row group's column is read at once all the same.
    options = {"buffer_size": buffer_size, "pre_buffer": False}
    with (
        _told(path),
        path.open("rb") if isinstance(path, RemotePath) else nullcontext(path) as file,
        parquet.ParquetFile(file, **options) as opened,
    ):
        yield opened


def parquet_metadata(path: Path) -> Any:
    """Returns a file's `pyarrow.parquet.FileMetaData`. Raises as `opened_parquet`."""
    parquet = require("pyarrow.parquet", extra="parquet")
    with _told(path):
        return parquet.read_metadata(path)


@contextmanager
def _told(path: Location) -> Iterator[None]:
    """Turns whatever pyarrow raises at a file that is no parquet, or a damaged one, into an error that names it."""
    try:
        yield
    except CnclipError:
        raise
    # pyarrow's own, and for damaged pages, lengths and names: OSError, ValueError, KeyError, MemoryError, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, and not pyarrow's of the same type
        if isinstance(error, MemoryError):
            raise BadFile(
                f"there is no memory for what it says it holds ({error}); mend it, or read it on a larger machine",
                path=str(path),
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadFile(f"no parquet file, or a damaged one ({reason}); mend or remove it", path=str(path)) from error
