"""One output of a job: its files, the work on them until they are whole, and the record that says that they are."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from cnclip_client._exceptions import BadFile, JobRefused
from cnclip_client._replacing import behind_links, kind_of_special, put
from cnclip_client.extraction._fingerprint import REPEATED_IDS, differences
from cnclip_client.extraction._work_folder import GrowingFiles, Progress, locked, read_json, remove_work, write_json
from cnclip_client.features import Sink
from cnclip_client.features._parts import record_name

__all__ = ["LocalStore", "Output", "Store", "file_for", "room"]

_log = logging.getLogger(__name__)

_RECORDED = {"items": int, "failures": int, "seconds": float, "digest": str, "repeated": int, "state": str}
# What a job's progress holds that is of no use once it is finished.
_OF_WORK = ("sizes", "complete", "last", "after", "state")


class Store(Protocol):
    """Where finished files are kept."""

    def put(self, made: Path, place: Path) -> None:
        """Moves a whole file to its place: it is there whole, or not at all. Raises OSError."""

    def write(self, place: Path, value: Mapping[str, Any]) -> None:
        """Replaces a record in one step. Raises OSError."""

    def read(self, place: Path) -> Any:
        """Returns a record, or None if there is none. Raises BadFile, OSError."""

    def read_all(self, places: Sequence[Path]) -> list[Any]:
        """Returns several records, as `read` does."""

    def size(self, place: Path) -> int | None:
        """Returns a file's size in bytes, or None if there is none. Raises OSError."""

    def names(self, folder: Path) -> set[str]:
        """Returns the names of what is in a folder. Raises OSError."""

    def remove(self, place: Path) -> None:
        """Removes a file; that there is none is as good. Raises OSError."""


class LocalStore:
    """A disk that the work is on as well, or can be reached like one."""

    def put(self, made: Path, place: Path) -> None:
        put(made, place)

    def write(self, place: Path, value: Mapping[str, Any]) -> None:
        write_json(place, value)

    def read(self, place: Path) -> Any:
        return read_json(place)

    def read_all(self, places: Sequence[Path]) -> list[Any]:
        return [read_json(place) for place in places]

    def size(self, place: Path) -> int | None:
        try:
            return place.stat().st_size
        except FileNotFoundError:
            return None

    def names(self, folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir()}

    def remove(self, place: Path) -> None:
        if not place.is_dir():
            place.unlink(missing_ok=True)


class Output:
    """The files of one output.

    Args:
        path: The file of features.
        sink: What writes it.
        job: What it is of, as `fingerprint_of` gives it.
        overwrite: Whether what there is of it, or work on it, may be another job's, and goes.
        store: Where they go when they are whole.

    Attributes:
        work: The folder of unfinished files.
        record: The file that says that the others are whole.
        places: Names of files in the work folder, and where they belong.

    Raises:
        JobRefused: No file can be put in the place of one of them.
    """

    def __init__(
        self, path: Path, sink: Sink, job: Mapping[str, Any], *, overwrite: bool = False, store: Store | None = None
    ) -> None:
        self.path = path
        self.sink = sink
        self.job = dict(job)
        self.work = path.with_name(f"{path.name}.partial")
        self.record = path.with_name(record_name(path.name))
        self.places = {"errors": path.with_name(f"{path.name}.errors.jsonl"), **sink.outputs}
        self._overwrite = overwrite
        self._store = store or LocalStore()
        for place in (self.record, *self.places.values()):
            file_for(place, path)

    def locked(self, *, quiet: bool = False) -> AbstractContextManager[None]:
        """Keeps the work to this process, as `_work_folder.locked` does. Raises JobRefused, OSError."""
        return locked(self.work, self.path, quiet=quiet)

    def begun(self) -> Progress | None:
        """Returns how far the work on this job is, or None if there is none to go on with."""
        path = self.work / "job.json"
        try:
            progress = Progress.read(self.work / "progress.json")
            found = read_json(path)
            if progress is None or found is None:
                return None  # nothing was made safe yet
            self._require_same(found.get("job"), path, progress.repeated)
        except (BadFile, JobRefused) as error:
            if not self._overwrite:
                raise
            _log.warning("beginning anew, for there is no going on with what was done (%s)", error)
            return None
        if self._overwrite and progress.items:
            _log.warning("going on after %d items; to begin anew remove %s first", progress.items, self.work)
        if found.get("job") != self.job:
            write_json(path, {"job": self.job})
        return progress

    def begin(self, *, ours: bool = False) -> Progress:
        """Makes the work folder this job's. What there is of the output stays until there is something else.

        Args:
            ours: Whether what there is without a record is known to be this job's.
        """
        there = [place for place in self.places.values() if place.exists()]
        if there and not ours and not self._overwrite and not self.record.exists():
            raise JobRefused(
                f"{there[0].name} is there and no job of this command's; give another --output, or --overwrite it",
                output=str(self.path),
            )
        remove_work(self.work)
        write_json(self.work / "job.json", {"job": self.job})
        return Progress()

    def adopt(self, source: Mapping[str, Any]) -> None:
        """Makes the job one of a source that has another size or time by now, and the same items. Raises OSError."""
        self.job["source"] = dict(source)
        write_json(self.work / "job.json", {"job": self.job})

    def open_files(self, progress: Progress) -> GrowingFiles:
        """Opens the unfinished files, cut back to what is known of them. Raises BadFile, OSError."""
        with room(self.work):
            return GrowingFiles(self.work, {"errors": b"", "keys": b"", **self.sink.begins}, progress.sizes)

    def finished(self) -> dict[str, Any] | None:
        """Returns what is recorded of this job as a finished one, or None. Raises BadFile, JobRefused."""
        found = self._store.read(self.record)
        if found is None:
            return None
        if not all(type(found.get(name)) is kind for name, kind in _RECORDED.items()):
            raise BadFile("not a job's file; start anew with --overwrite", path=str(self.record))
        self._require_same(found.get("job"), self.record, found["repeated"])
        return found  # type: ignore[no-any-return]

    def confirm(self, known: Mapping[str, Any], state: str) -> None:
        """Records of a finished job that its items were found to be the same in another state of the source."""
        self._store.write(self.record, {**known, "state": state})

    def gone(self) -> list[Path]:
        """Returns the files of features that are not in their places."""
        return [place for place in self.sink.outputs.values() if self._store.size(place) is None]

    def finish(self, progress: Progress, more: Mapping[str, Any] | None = None) -> None:
        """Makes the outputs and puts them in place; all of it may be cut off at any moment, and done again.

        Args:
            progress: Of a job that came to its end.
            more: What else to record.
        """
        left_out = progress.failures + (progress.repeated if self.job.get(REPEATED_IDS) == "first" else 0)
        with room(self.work):
            self.sink.assemble(self.work, progress.items - left_out)
            for name, place in self.places.items():
                made = self.work / name
                if made.exists():  # else it is in its place already
                    self._store.put(made, place)
            known = {key: value for key, value in asdict(progress).items() if key not in _OF_WORK}
            sizes = {place.name: self._store.size(place) for place in self.sink.outputs.values()}
            self._store.write(self.record, {"job": self.job, **known, "sizes": sizes, **(more or {})})
            remove_work(self.work)

    def _require_same(self, known: Any, path: Path, repeated: int) -> None:
        known, now = known if isinstance(known, dict) else {}, self.job
        if repeated == 0:
            # No id was repeated, so what was to be done with such ids makes no difference.
            known, now = ({name: value for name, value in one.items() if name != REPEATED_IDS} for one in (known, now))
        if different := differences(known, now):
            raise JobRefused(
                f"{path.name} is of another job ({'; '.join(different)}); give another --output, or --overwrite it",
                output=str(self.path),
            )


def file_for(place: Path, output: Path) -> Path:
    """Returns the file that a place stands for. Raises JobRefused if no file can be put there."""
    target = behind_links(place)
    special = "an open file of this process" if target is None else kind_of_special(target)
    if target is None or special:
        message = (
            f"{place.name} is {special}, and a job's output a file that is put in its place; give another --output"
        )
        raise JobRefused(message, output=str(output))
    return target


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Says of a full disk which one it is, that with a folder unless a file is named, and what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        words = f"{error.strerror}; what was done is kept: make room and run the same command again"
        raise OSError(error.errno, words, error.filename or str(folder)) from error
