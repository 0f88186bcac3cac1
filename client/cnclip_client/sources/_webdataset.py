"""WebDataset: tars of samples, as img2dataset and others write them."""

from __future__ import annotations

import glob
import io
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from cnclip_client._exceptions import BadFile
from cnclip_client._listing import files_below, files_matching
from cnclip_client._remote import FileState, Location, RemotePath, is_remote, state_digest, state_of
from cnclip_client._vocabulary import Kind
from cnclip_client.sources._gzip_file import GzipFile
from cnclip_client.sources._item import Item, Place
from cnclip_client.sources._samples import Part, Wanted, items_of
from cnclip_client.sources._sniff import packed_as
from cnclip_client.sources._tar_file import PACKED_BADLY, Member, TornTar, members

__all__ = ["PACKED_ENDINGS", "TAR_ENDINGS", "WebDatasetSource", "braces", "is_tar"]

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
# Those that are not read: in a folder of tars they fail by name.
PACKED_ENDINGS = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_log = logging.getLogger(__name__)
# Small: what is passed over is not to be read.
_BUFFER_BYTES = 64 * 1024
_GZIP = b"\x1f\x8b"
_ASKED_AT_ONCE = 32
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAGIC_BYTES = 8
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_TARS = 10_000_000
# So much of the first tar tells how many samples there are in all, about.
_SAMPLE_BYTES = 64 * 1024 * 1024


def is_tar(name: str) -> bool:
    """Whether a name ends as a tar's does."""
    return name.lower().endswith(TAR_ENDINGS)


def braces(pattern: str) -> Iterator[str]:
    """Yields what a pattern stands for, as a shell has it: `{000..012}` in order, as wide as written, `{a,b}` each.

    Raises:
        BadFile: It stands for more than anybody has.
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(found[1])
    alternatives: Iterator[str]
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MOST_TARS:
            raise BadFile(f"stands for more than {_MOST_TARS:,} tars; mend the braces", path=pattern)
        padded = any(len(one) > 1 and one.startswith("0") for one in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        step = 1 if last >= first else -1
        alternatives = (f"{number:0{width}d}" for number in range(first, last + step, step))
    else:
        alternatives = iter(found[1].split(","))
    for one in alternatives:
        yield from braces(f"{pattern[: found.start()]}{one}{pattern[found.end() :]}")


@dataclass(frozen=True, slots=True)
class WebDatasetSource:
    """The samples of one or more tars, in their order; one sample is in memory at a time.

    A tar that is cut off or damaged gives what is before, and then an item with its name that fails; the next one
    follows. Members that are no files, and samples without what is wanted, fail by name.

    Attributes:
        path: A tar, a folder of them, or a pattern with braces or `*`.
        wanted: What of each sample.
    """

    path: str
    wanted: Wanted

    @property
    def kind(self) -> Kind:
        """Whether the items are images or texts."""
        return self.wanted.kind

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        states = [state for _, state in self._tars()]
        return {
            "format": "webdataset",
            "path": self.path if is_remote(self.path) else str(Path(self.path).absolute()),
            "size_bytes": sum(state.size_bytes for state in states),
            "files": state_digest(states),
            "id_column": self.wanted.id_column,
            "column": self.wanted.column,
        }

    def items(self, ids_only: int = 0, *, start: int = 0, after: Place = ()) -> Iterator[Item]:
        first, begin = (int(one) for one in after) if after else (0, 0)
        number = start if after else 0
        loose, example = 0, ""
        for tar, (place, state) in enumerate(self._tars()):
            if tar < first:
                continue
            torn: list[str] = []
            with _opened(place, state) as file:
                parts = _Parts(file, tar, begin if tar == first else 0, torn)
                before = number
                number = yield from items_of(parts, self.wanted, number, start, start + ids_only)
            loose += parts.loose
            example = parts.example or example
            if number == before and not torn and not (after and tar == first and begin):
                torn.append("holds no sample: files such as 17.jpg, 17.txt; leave it out")
            if torn:
                number += 1
                if number > start:
                    yield Item(self._named(place), None, torn[0], (tar + 1, 0))
        if loose:
            _log.warning(
                "%d files in tars are of no sample, for their names have no ending, such as %r", loose, example
            )

    def total(self) -> int | None:
        tars = self._tars()
        if any(state.size_bytes < 0 for _, state in tars):
            return None
        with _opened(*tars[0]) as file:
            parts = _Parts(file, 0, 0, [])
            # Where it is packed, what is read of it counts.
            packed = getattr(file, "raw", None)
            samples = 0
            for item in items_of(parts, self.wanted, 0, 0, 2**62):
                samples += 1
                read = packed.packed_bytes if isinstance(packed, GzipFile) else int(item.after[1])
                if read > _SAMPLE_BYTES:
                    return round(samples * sum(state.size_bytes for _, state in tars) / read)
        return round(samples * sum(state.size_bytes for _, state in tars) / max(tars[0][1].size_bytes, 1))

    def _tars(self) -> list[tuple[Location, FileState]]:
        """Returns the tars and what they are told by. Raises BadFile, StoreError and OSError."""
        path = Path(self.path)
        if not is_remote(self.path) and path.exists():
            tars = files_below(path, *TAR_ENDINGS, *PACKED_ENDINGS) if path.is_dir() else [path]
            return [(one, state_of(one)) for one in tars]
        # In a store each tar that is named is asked for by itself, and a data set may have ten thousand.
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            found = [tar for tars in pool.map(_matching, braces(self.path)) for tar in tars]
        if not found:
            raise BadFile("there is no tar that it stands for", path=self.path)
        return found

    def _named(self, place: Location) -> str:
        """Returns a tar's name as an id: as it is told apart from the others."""
        whole, folder = str(place), self.path.rstrip("/") + "/"
        return whole.removeprefix(folder) if whole.startswith(folder) else whole


class _Parts:
    """The files in a tar, as parts of samples.

    Attributes:
        loose: How many are of none, as their names have no ending.
        example: The name of one of those.
    """

    def __init__(self, file: IO[bytes], tar: int, begin: int, torn: list[str]) -> None:
        self._file = file
        self._tar = tar
        self._begin = begin
        self._torn = torn
        self.loose = 0
        self.example = ""

    def __iter__(self) -> Iterator[Part]:
        try:
            if told := "" if self._begin else self._packed_as():
                self._torn.append(f"is {told}")
                return
            for member in members(self._file, self._begin):
                if member.what != "a folder" and "." not in member.name.rpartition("/")[2]:
                    self.loose += 1
                    self.example = self.example or member.name
                yield Part(
                    member.name,
                    member.what,
                    member.size,
                    lambda member=member: _read(self._file, member),  # type: ignore[misc]
                    (self._tar, member.begin),
                    (self._tar, member.end),
                )
        except TornTar as error:
            self._torn.append(f"{error}; fetch it again, or leave it out")

    def _packed_as(self) -> str:
        with suppress(*PACKED_BADLY):  # told as its first member is read
            return packed_as(self._file.read(_MAGIC_BYTES))
        return ""


def _read(file: IO[bytes], member: Member) -> bytes:
    try:
        file.seek(member.data)
        data = file.read(member.size)
    except PACKED_BADLY as error:
        raise TornTar(f"is cut off or damaged ({error})") from error
    if len(data) < member.size:
        raise TornTar(f"is cut off: the tar has {len(data):,} of its {member.size:,} bytes")
    return data


@contextmanager
def _opened(place: Location, state: FileState) -> Iterator[IO[bytes]]:
    with place.open_of(state.size_bytes) if isinstance(place, RemotePath) else _local(place) as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        yield cast(IO[bytes], io.BufferedReader(GzipFile(file), _BUFFER_BYTES)) if packed else file


def _local(path: Path) -> IO[bytes]:
    return path.open("rb", buffering=_BUFFER_BYTES)


def _matching(one: str) -> list[tuple[Location, FileState]]:
    """Returns the files that one of a pattern's alternatives stands for."""
    if not is_remote(one):
        paths = files_matching(one, _raise) if glob.has_magic(one) else [one]
        return [(Path(path), state_of(Path(path))) for path in paths]
    place = RemotePath(one)
    if glob.has_magic(one):
        states = place.matching()
    else:
        states = (
            place.find(*TAR_ENDINGS, *PACKED_ENDINGS) if not is_tar(place.name) and place.is_dir() else [place.state()]
        )
    return [(RemotePath(state.name), state) for state in states]


def _raise(folder: str, error: OSError) -> None:
    raise error
