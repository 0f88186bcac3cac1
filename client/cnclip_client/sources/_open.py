"""Tells what a path holds, by its name and its first bytes."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from cnclip_client._exceptions import BadFile
from cnclip_client._parquet import is_no_data, parquet_places
from cnclip_client._remote import Location, RemotePath, is_remote, located
from cnclip_client._settings import Limits
from cnclip_client.sources._files import FolderSource, GlobSource, ListSource
from cnclip_client.sources._item import Source
from cnclip_client.sources._lmdb import LmdbSource, imgs_folder
from cnclip_client.sources._muge import JsonlSource, LinesSource, TsvSource
from cnclip_client.sources._parquet import ParquetSource
from cnclip_client.sources._sample_folder import Glance, SampleFolderSource
from cnclip_client.sources._samples import Wanted
from cnclip_client.sources._sniff import first_bytes, require_file, require_lines, require_unpacked, require_utf8
from cnclip_client.sources._webdataset import WebDatasetSource, is_tar

__all__ = ["ImageFormat", "TextFormat", "image_source", "text_source"]

ImageFormat: TypeAlias = Literal["folder", "glob", "tsv", "lmdb", "parquet", "list", "webdataset", "samples"]
TextFormat: TypeAlias = Literal["jsonl", "lines", "parquet", "webdataset", "samples"]

_NO_LINES = {
    "text": "JSON lines (.jsonl) or .parquet, which have ids too",
    "image": "a .parquet file with a column of paths, or the paths alone, one a line",
}
_SUFFIXES = {".parquet": "parquet", ".tsv": "tsv", ".jsonl": "jsonl"}


def image_source(
    path: str | os.PathLike[str],
    *,
    format: ImageFormat | None = None,
    id_column: str | None = None,
    column: str | None = None,
    item_bytes: int | None = None,
) -> Source:
    """Returns the images of a folder, glob, TSV, LMDB, parquet or list, or of WebDataset's tars.

    Args:
        path: Where they are, here or elsewhere: `s3://bucket/photos`, and what else fsspec knows.
        format: What it is; without it, told by its name and content.
        id_column: Parquet's column of ids; in tars and in img2dataset's folders, that key of each sample's .json.
        column: Parquet's column of images or paths; in tars and in img2dataset's folders, the ending of the images.
        item_bytes: The largest image taken from a TSV, an LMDB or a tar; by default that of `Limits`.

    Raises:
        BadFile: There is no telling what it is, or it is not what it was said to be, or no file matches it.
        OSError: It cannot be read.
    """
    place = _located(path)
    format = format or _image_format(place, os.fspath(path))
    _refuse_columns(place, format, {"parquet", "webdataset", "samples"}, id_column, column)
    most_bytes = item_bytes or Limits().item_bytes
    if format == "webdataset":
        return _checked(WebDatasetSource(os.fspath(path), Wanted("image", id_column, column, most_bytes)))
    if format == "glob":
        globbed = GlobSource(os.fspath(path))
        next(globbed.items())  # before a job has begun, to which its output would belong from then on
        return globbed
    if format == "lmdb":
        if isinstance(place, RemotePath):
            raise BadFile("an LMDB is read here and there in its file, and must be on a disk: copy it", path=str(place))
        folder = imgs_folder(place)
        if folder is None:
            raise BadFile("no data.mdb in it or in its imgs; give cn_clip's LMDB folder", path=str(path))
        return LmdbSource(folder, most_bytes)
    require_file(place)
    if format == "parquet":
        return ParquetSource(place, "image", id_column, column)
    if format == "samples":
        return SampleFolderSource(place, Wanted("image", id_column, column, most_bytes))
    if format == "folder":
        return FolderSource(place)
    return TsvSource(place, most_bytes) if format == "tsv" else ListSource(place)


def text_source(
    path: str | os.PathLike[str],
    *,
    format: TextFormat | None = None,
    id_column: str | None = None,
    column: str | None = None,
) -> Source:
    """Returns the texts of a JSONL file, of lines, of parquet or of WebDataset's tars; as `image_source` otherwise.

    Args:
        path: Where they are.
        format: What it is; without it, told by its name and content.
        id_column: The column of ids, or that key of JSONL or of each sample's .json.
        column: That of texts; without it those of a tar's samples are their .txt.

    Raises:
        BadFile: There is no telling what it is, or it is not what it was said to be.
        OSError: It cannot be read.
    """
    place = _located(path)
    if format is None and _is_of_tars(place, os.fspath(path)):
        format = "webdataset"
    if format != "webdataset":
        require_file(place)
    told, format = format is None, format or _text_format(place)
    if format == "webdataset":
        return _checked(WebDatasetSource(os.fspath(path), Wanted("text", id_column, column, 0)))
    _refuse_columns(place, format, {"parquet", "jsonl", "samples"}, id_column, column)
    if format == "samples":
        return SampleFolderSource(place, Wanted("text", id_column, column, 0))
    if format == "parquet":
        return ParquetSource(place, "text", id_column, column)
    if format == "jsonl":
        source = JsonlSource(place, id_column or "text_id", column or "text")
        if told:
            source.require_keys()
        return source
    return LinesSource(place)


def _located(path: str | os.PathLike[str]) -> Location:
    """Returns where a source is; nothing, as of a shell's unset variable, would be the current folder."""
    if not os.fspath(path):
        raise BadFile("no path was given; give a file, a folder or a pattern", path="''")
    return located(path)


def _image_format(place: Location, path: str) -> ImageFormat:
    if _is_of_tars(place, path):
        return "webdataset"
    if glob.has_magic(path) and (is_remote(path) or not os.path.lexists(path)):
        return "glob"
    if place.is_dir():
        if isinstance(place, Path) and imgs_folder(place):
            return "lmdb"
        glance = Glance(place)
        if glance.tars or glance.samples:
            return "webdataset" if glance.tars else "samples"
        if glance.no_image:
            told = f"holds no image, but files such as {glance.no_image}; give what its images are in"
            raise BadFile(told, path=path)
        return "parquet" if glance.parquet or _begins_with_parquet(place) else "folder"
    require_file(place)
    named = _SUFFIXES.get(place.suffix.lower())
    if named == "tsv":
        _require_tsv(place, first_bytes(place))
    if named in get_args(ImageFormat):
        return cast(ImageFormat, named)
    start = first_bytes(place)
    if start.startswith(b"PAR1"):
        return "parquet"
    require_unpacked(place, start)
    if b"\0" in start:
        raise BadFile("is it an image? give a folder, a list or a format with --format", path=path)
    first = start.partition(b"\n")[0]
    if b"\t" in first and place.suffix.lower() != ".txt":
        _require_tsv(place, start)
        return "tsv"
    require_lines(place, start, "a path", _NO_LINES["image"], "--format list")
    return "list"


def _is_of_tars(place: Location, path: str) -> bool:
    """Whether a path is that of a tar, or a pattern of several."""
    return is_tar(path) and (isinstance(place, RemotePath) or not place.is_dir())


def _checked(source: WebDatasetSource) -> WebDatasetSource:
    """Says at once if there is no tar, or one of a pattern's is missing."""
    _ = source.fingerprint
    return source


def _text_format(place: Location) -> TextFormat:
    if place.is_dir():
        glance = Glance(place)
        if glance.tars or glance.samples:
            return "webdataset" if glance.tars else "samples"
        if parquet_places(place):
            return "parquet"
        raise BadFile("no .parquet file in this folder; give a file of texts", path=str(place))
    named = _SUFFIXES.get(place.suffix.lower())
    if named == "jsonl":
        _require_objects(place)
    if named in get_args(TextFormat):
        return cast(TextFormat, named)
    start = first_bytes(place)
    if start.startswith(b"PAR1"):
        return "parquet"
    if place.suffix.lower() != ".txt" and _is_object(start.lstrip().partition(b"\n")[0]):
        require_utf8(place, start)
        return "jsonl"
    require_lines(place, start, "a text", _NO_LINES["text"], "--format lines")
    require_utf8(place, start)
    return "lines"


def _require_tsv(place: Location, start: bytes) -> None:
    """Refuses archives, and ids in another charset, which would be taken for other ids."""
    require_unpacked(place, start)
    require_utf8(place, start)


def _require_objects(place: Location) -> None:
    """Refuses an array, an object over many lines or GBK in a file named .jsonl: no line of it would be taken."""
    start = first_bytes(place)
    first = start.lstrip().partition(b"\n")[0].strip()
    if first == b"{" or first.startswith(b"["):
        raise BadFile("is JSON, but not an object a line; convert it (jq -c '.[]'), or give .parquet", path=str(place))
    require_unpacked(place, start)
    if b"\0" in start[:4]:
        raise BadFile("is UTF-16 or UTF-32; convert it to UTF-8 (iconv -f UTF-16LE -t UTF-8)", path=str(place))
    require_utf8(place, start)


def _is_object(line: bytes) -> bool:
    """Whether a first line is a JSON object, or, of a very long one, could be; `{` alone begins one of many lines."""
    return line.startswith(b"{") and (line.rstrip().endswith(b"}") or len(line) > 32 * 1024)


def _begins_with_parquet(folder: Location) -> bool:
    """Whether the first file in a folder and the folders in it is one of parquet."""
    if isinstance(folder, RemotePath):
        return False
    waiting = [folder]
    while waiting:
        names: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if is_no_data(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        names.append(entry.name)
        except OSError:
            continue  # told when it is read
        if names:
            return min(names).lower().endswith(".parquet")
        waiting += sorted(map(Path, folders), reverse=True)
    return False


def _refuse_columns(place: Location, format: str, formats: set[str], id_column: str | None, column: str | None) -> None:
    if format not in formats and (id_column or column):
        raise BadFile(f"{format} has no columns; leave out --id-column and --column", path=str(place))
