"""The folder that parts are written to: whose it is, who is at work in it, and what is whole.

| file | holds |
|---|---|
| `job.json` | what the job is, and how it is shared out; written first |
| `part-00000.parquet`, with `.errors.jsonl` | what a part comes to |
| `part-00000.parquet.job.json` | that it is whole; written last |
| `part-00000.parquet.partial/` | work on it |
| `.job-I-of-N/`, `.entering/` | locks, of the job with that index and of `job.json` |

In an object store there are the first three alone; work and locks are in a folder of this machine.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile, JobRefused
from cnclip_client.extraction._fingerprint import differences
from cnclip_client.extraction._output import LocalStore, Output, Store
from cnclip_client.extraction._remote_store import RemoteStore
from cnclip_client.extraction._sharding import Sharding
from cnclip_client.extraction._work_folder import Progress, locked
from cnclip_client.features import Sink
from cnclip_client.features._parts import FOLDER_RECORD, part_name, part_records, record_name

__all__ = ["PartRecord", "PartsFolder", "work_folder"]

_log = logging.getLogger(__name__)

_OURS = re.compile(r"part-[0-9]{5,}\.(parquet|npy|jsonl|ids\.jsonl)(\.|$)|job\.json(\.|$)|lost\+found$|\.")
_PART = re.compile(r"part-[0-9]{5,}\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What is recorded of a part that is whole.

    Attributes:
        items: How many items of the source are in it.
        failures: How many of them failed.
        digest: `Chain` of the items.
        seconds: How long it took.
        repeated: How many ids came again in it.
        last: Whether the source ends with it.
        after: Where the source goes on after it, where that is known.
        state: What the source was like then, as `state_of_source` has it.
    """

    items: int
    failures: int
    digest: str
    seconds: float
    repeated: int
    last: bool
    after: list[int | str]
    state: str

    @classmethod
    def of(cls, progress: Progress) -> PartRecord:
        """Returns that of a part that has come to its end."""
        return cls(**{one.name: getattr(progress, one.name) for one in fields(cls)})


def work_folder(output: str, work: Path | None) -> Path:
    """Returns where unfinished parts of an output in an object store are kept."""
    return work or Path(f"{output.rstrip('/').rpartition('/')[2]}.partial")


class PartsFolder:
    """One job's folder.

    Args:
        output: A folder, or the address of one in an object store.
        work: Where unfinished work and locks are kept if the output is such an address.
        job: What the job is, as `fingerprint_of` gives it.
        sharding: How it is shared out.
        overwrite: Whether parts of another job go.
    """

    def __init__(
        self, output: str, work: Path | None, job: Mapping[str, Any], sharding: Sharding, *, overwrite: bool
    ) -> None:
        self.output = output
        self.job = dict(job)
        self._sharding = sharding
        self._overwrite = overwrite
        self._is_remote = "://" in output
        self.store: Store = RemoteStore(output) if self._is_remote else LocalStore()
        self.folder = work_folder(output, work) if self._is_remote else Path(output)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Makes the folder this job's, and its index this process's, for as long as it lasts.

        Raises:
            JobRefused: It is another job's, or shared out otherwise, or holds something else, or the index is taken.
            BadFile: What is recorded of it is damaged.
            StoreError: A store cannot be had.
            OSError: It cannot be written.
        """
        sharding = self._sharding
        try:
            self.folder.mkdir(parents=self._is_remote, exist_ok=True)
        except FileExistsError as error:
            message = "is a file, and the parts need a folder; give another --output"
            raise JobRefused(message, output=str(self.folder)) from error
        except OSError as error:
            words = f"{error.strerror}; mend that, or give another --output"
            raise OSError(error.errno, words, str(self.folder)) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            words = f"{os.strerror(errno.EACCES)}; have it made writable, or give another --output"
            raise OSError(errno.EACCES, words, str(self.folder))
        taken = f"a job with --shard {sharding.index}/{sharding.jobs} is at work in it; wait for it to end"
        with ExitStack() as stack:
            with locked(self.folder / ".entering", Path(self.output), wait=True, quiet=True):
                self._enter()
                index = self.folder / f".job-{sharding.index}-of-{sharding.jobs}"
                stack.enter_context(locked(index, Path(self.output), taken=taken))
            yield

    def part(self, number: int, sink: Sink, path: Path) -> Output:
        """Returns one part's output."""
        part = {**self.job, "part": number, "shard_items": self._sharding.items}
        return Output(path, sink, part, overwrite=self._overwrite, store=self.store)

    def path(self, number: int) -> Path:
        """Returns where a part's file belongs; in a store only its name counts."""
        return self.folder / part_name(number, self._sharding.format)

    def failed_parts(self) -> str:
        """Returns what to remove to do anew what failed, and none of what others finished."""
        here = f" and {self.folder}" if self._is_remote else ""
        return f"part-N.* of each part N that has failures from {self.output}{here}"

    def whole(self) -> dict[int, PartRecord]:
        """Returns what is recorded of the parts that are whole, whoever did them, rising. Raises BadFile, OSError."""
        names = self.store.names(self.folder)
        numbers = part_records(names, self._sharding.format)
        places = [self.folder / record_name(part_name(number, self._sharding.format)) for number in numbers]
        found = {}
        for number, place, known in zip(numbers, places, self.store.read_all(places), strict=True):
            if known is not None and self.path(number).name in names:
                found[number] = self._parsed(number, place, known)
        return found

    def begun(self) -> list[int]:
        """Returns the numbers of the parts that there is work on, rising."""
        names = [path.name for path in self.folder.iterdir() if path.name.endswith(".partial")]
        return sorted({int(name.split(".")[0].split("-")[1]) for name in names if _PART.match(name)})

    def _parsed(self, number: int, place: Path, known: dict[str, Any]) -> PartRecord:
        types = {"items": int, "failures": int, "digest": str, "repeated": int, "last": bool, "after": list}
        types |= {"state": str, "seconds": float}
        if not all(type(known.get(name)) is kind for name, kind in types.items()):
            raise BadFile("not a part's record; remove it to do the part anew", path=str(place))
        job = known.get("job")
        part = {**self.job, "part": number, "shard_items": self._sharding.items}
        if different := differences(job if isinstance(job, dict) else {}, part):
            raise JobRefused(
                f"{place.name} is of another job ({'; '.join(different)}); move that part elsewhere",
                output=self.output,
            )
        return PartRecord(**{one.name: known[one.name] for one in fields(PartRecord)})

    def _enter(self) -> None:
        place = self.folder / FOLDER_RECORD
        now = {"items": self._sharding.items, "format": self._sharding.format, "jobs": self._sharding.jobs}
        known = self.store.read(place)
        if known is None:
            other = sorted(name for name in self.store.names(self.folder) if not _OURS.match(name) or _PART.match(name))
            if other:
                raise JobRefused(
                    f"holds {other[0]} and is no folder of a job's; give an empty folder, or another --output",
                    output=self.output,
                )
        else:
            job, parts = known.get("job"), known.get("parts")
            if not isinstance(job, dict) or not isinstance(parts, dict):
                raise BadFile("not a job's file; give another --output, or remove the folder", path=str(place))
            if self._same(job, parts, now):
                return
        self.store.write(place, {"job": self.job, "parts": now})

    def _same(self, job: dict[str, Any], parts: dict[str, Any], now: Mapping[str, Any]) -> bool:
        """Tells whether what is recorded is as it should be; where it may be replaced, what it was of is removed."""
        different = differences(job, self.job)
        options = {"items": "--shard-items", "format": "--output-format"}
        different += [
            f"{option} {parts.get(name)!r}, now {now[name]!r}"
            for name, option in options.items()
            if parts.get(name) != now[name]
        ]
        jobs = parts.get("jobs")
        if not different and jobs == now["jobs"]:
            return True
        if different and not self._overwrite:
            raise JobRefused(
                f"its parts are another job's ({'; '.join(different)}); give what it was begun with or another "
                "--output, or --overwrite it",
                output=self.output,
            )
        if busy := self._at_work():
            raise JobRefused(
                f"jobs are at work in it, that of --shard {busy} among them, and now it is to be --shard "
                f"{self._sharding.index}/{self._sharding.jobs}; wait for them to end, or give --shard as they have it",
                output=self.output,
            )
        if different and self._is_remote and self._sharding.jobs > 1:
            raise JobRefused(
                f"its parts are another job's ({'; '.join(different)}), and in a store nobody keeps several jobs from "
                "removing each other's; remove what is there first, or give another --output",
                output=self.output,
            )
        if different:
            _log.warning("removing the parts of another job from %s (%s)", self.output, "; ".join(different))
            self._remove_parts()
        else:
            _log.warning("%s was shared out among %s jobs, and is among %d now", self.output, jobs, now["jobs"])
        return False

    def _at_work(self) -> str:
        """Returns the index and count of a job that is at work here, as --shard has them, or nothing."""
        for lock in self.folder.glob(".job-*-of-*"):
            try:
                with locked(lock, Path(self.output), quiet=True):
                    pass
            except JobRefused:
                index, jobs = lock.name.removeprefix(".job-").split("-of-")
                return f"{index}/{jobs}"
        return ""

    def _remove_parts(self) -> None:
        # Records first: what has none is not taken for whole.
        for name in sorted(self.store.names(self.folder), key=lambda name: not name.endswith(".job.json")):
            if _PART.match(name):
                self.store.remove(self.folder / name)
        for path in self.folder.iterdir():
            if _PART.match(path.name) and path.is_dir():
                shutil.rmtree(path)

    def remove_part(self, number: int) -> None:
        """Removes what a part came to, its record first."""
        begin = f"{self.path(number).stem}."
        names = [
            name for name in self.store.names(self.folder) if name.startswith(begin) and not name.endswith(".partial")
        ]
        for name in sorted(names, key=lambda name: not name.endswith(".job.json")):
            self.store.remove(self.folder / name)

    def confirm(self, number: int, record: PartRecord) -> None:
        """Records of a part that its items were found to be the same in another state of the source."""
        place = self.folder / record_name(self.path(number).name)
        known = self.store.read(place)
        self.store.write(place, {**known, **asdict(record)})
