"""What reading parquet takes, whatever is in it: which files are meant, and what is told of a damaged one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile, CnclipError
from cnclip_client._extras import require
from cnclip_client._listing import files_below
from cnclip_client._remote import FileState, Location, RemotePath, state_of

__all__ = ["opened_parquet", "parquet_files", "parquet_places", "parquet_states", "told_parquet"]


def parquet_files(path: Path) -> list[Path]:
    """Returns a folder's parquet files, as `files_below` does; or the file. Raises OSError."""
    return files_below(path, ".parquet") if path.is_dir() else [path]


def parquet_states(path: Location) -> list[FileState]:
    """Returns what the same files are told by, here or elsewhere. Raises OSError, and what `RemotePath` does."""
    if isinstance(path, RemotePath):
        return path.find(".parquet") if path.is_dir() else [path.state()]
    return [state_of(file) for file in parquet_files(path)]


def parquet_places(path: Location) -> list[Location]:
    """Returns the same files, here or elsewhere. Raises what `RemotePath` does."""
    if isinstance(path, RemotePath):
        return [RemotePath(state.name) for state in parquet_states(path)]
    return [*parquet_files(path)]


@contextmanager
def opened_parquet(path: Location, buffer_size: int = 0) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile`.

    Args:
        path: The file.
        buffer_size: How many bytes of a column are read at once; 0 reads a row group's, which may be GBs of images.

    Raises:
        MissingExtra: pyarrow, or what reads a remote file, is not installed.
    """
    parquet = require("pyarrow.parquet", extra="parquet")
    # Without pre-buffering: otherwise a row group's column is read at once all the same.
    options = {"buffer_size": buffer_size, "pre_buffer": False}
    if isinstance(path, RemotePath):
        with path.open("rb") as file, parquet.ParquetFile(file, **options) as opened:
            yield opened
    else:
        with parquet.ParquetFile(path, **options) as opened:
            yield opened


@contextmanager
def told_parquet(path: Location) -> Iterator[None]:
    """Turns whatever pyarrow raises at a file that is none of parquet, or a damaged one, into an error that names it.

    Raises:
        BadFile: It is damaged.
        OSError: It cannot be read.
    """
    try:
        yield
    except CnclipError:
        raise
    # pyarrow's own, and for damaged pages, lengths and names: OSError, ValueError, KeyError, MemoryError, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, and not pyarrow's of the same type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadFile(f"no parquet file, or a damaged one ({reason}); mend or remove it", path=str(path)) from error
