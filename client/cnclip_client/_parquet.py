"""What reading parquet takes, whatever is in it: which files are meant, and what is told of a damaged one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnclip_client._exceptions import BadFile, CnclipError

__all__ = ["parquet_files", "told_parquet"]


def parquet_files(path: Path) -> list[Path]:
    """Returns a folder's parquet files and those of the folders in it, by path, hidden ones left out; or the file."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*.parquet")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


@contextmanager
def told_parquet(path: Path) -> Iterator[None]:
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
