"""What a batch job keeps on disk while it runs, so that it survives being killed at any moment.

Beside the output, in `OUTPUT.partial/`:

| file | holds |
|---|---|
| `lock` | nothing; whoever runs the job holds a lock on it |
| `job.json` | what the job is; written before anything else |
| the sink's files, `errors` and `keys` | what was done, and hashes of the ids; they only grow |
| `seen` | the set of those hashes; made anew by each run |
| `progress.json` | how far the job is known to be, and how long each of those files was then |

`progress.json` is replaced in one step, after the files are on the disk as far as it says. What is past that when a
job goes on is cut off, and done again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from cnclip_client._exceptions import BadFile, JobRefused
from cnclip_client._replacing import replacing, sync_open

__all__ = ["GrowingFiles", "Progress", "json_bytes", "locked", "parsed_json", "read_json", "remove_work", "write_json"]

_log = logging.getLogger(__name__)

_LOCK = "lock"
_TAKEN = "another process is working on it; wait for it to end, or give another --output"
_ANEW = "start anew with --overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        items: How many items of the source are done, in its order.
        failures: How many of them failed.
        digest: Of those items' ids, so that another source is told.
        seconds: How long it took, all runs together.
        sizes: How many bytes of each growing file they account for.
        complete: Whether the source has no more.
        repeated: How many ids of items that have features came again.
        last: Whether the source ends with a part that is complete.
        after: Where the source goes on after those items, where that is known.
        state: What the source was then, as `state_of_source` has it.
    """

    items: int = 0
    failures: int = 0
    digest: str = ""
    seconds: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    complete: bool = False
    repeated: int = 0
    last: bool = False
    after: Sequence[int | str] = field(default_factory=list)
    state: str = ""

    @classmethod
    def read(cls, path: Path) -> Progress | None:
        """Returns what was written last, or None.

        Raises:
            BadFile: It is not what was written.
        """
        found = read_json(path)
        if found is None:
            return None
        wanted = {known.name: type(known.default) for known in fields(cls) if known.default is not MISSING}
        try:
            progress = cls(**found)
            sound = all(type(getattr(progress, name)) is kind for name, kind in wanted.items())
            sound = sound and all(type(size) is int and size >= 0 for size in progress.sizes.values())
            sound = sound and isinstance(progress.after, list)
            sound = sound and min(progress.items, progress.failures, progress.repeated) >= 0
        except (TypeError, AttributeError):
            sound = False
        if not sound:
            raise BadFile(f"not a job's progress; {_ANEW}", path=str(path))
        return progress

    def write(self, path: Path) -> None:
        """Replaces what was written last."""
        write_json(path, asdict(self))


class GrowingFiles:
    """Files that are added to at their ends.

    Attributes:
        sizes: The bytes of each, those not yet on the disk included.
    """

    def __init__(self, folder: Path, begins: Mapping[str, bytes], sizes: Mapping[str, int]) -> None:
        """Opens them, and cuts them back.

        Args:
            folder: Where they are.
            begins: Their names, and what a new one begins with.
            sizes: How long each is known to be; empty for a new job.

        Raises:
            BadFile: One is shorter than that.
            OSError: One cannot be written.
        """
        self.sizes: dict[str, int] = {}
        self._files: dict[str, IO[bytes]] = {}
        try:
            for name, begin in begins.items():
                self._open(folder / name, sizes.get(name, 0))
                if not sizes:
                    self.append(name, begin)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, known: int) -> None:
        # Not "a": what is past the known end must go, and not be written behind.
        file = path.open("r+b" if path.exists() else "w+b", buffering=1024 * 1024)
        self._files[path.name] = file
        size = file.seek(0, os.SEEK_END)
        if size < known:
            raise BadFile(f"has {size} bytes of the {known} that were written; {_ANEW}", path=str(path))
        file.seek(known)
        file.truncate()
        self.sizes[path.name] = known

    def append(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self.sizes[name] += len(data)

    def flush(self) -> None:
        """Hands what was appended to the system, which keeps it even if this process is killed."""
        for file in self._files.values():
            file.flush()

    def sync(self) -> None:
        """Waits until what was flushed is on the disk. Another thread may append meanwhile."""
        for file in self._files.values():
            sync_open(file.fileno(), Path(file.name))

    def close(self) -> None:
        for file in self._files.values():
            # What could not be written (a full disk) is not wanted any more.
            with suppress(OSError):
                file.close()


@contextmanager
def locked(
    folder: Path, output: Path, *, wait: bool = False, taken: str = _TAKEN, quiet: bool = False
) -> Iterator[None]:
    """Makes a folder, and keeps it to this process; it is removed if nothing but the lock is in it at the end.

    Args:
        folder: The folder.
        output: What to name in the error.
        wait: Whether to wait for whoever has it.
        taken: What to say if another process has it.
        quiet: Whether to say nothing of a disk without locks, as where it was said before.

    Raises:
        JobRefused: Another process has it, or something else is there.
        OSError: It cannot be made.
    """
    # Unix only, as the package otherwise is not.
    import fcntl

    while True:
        # Not `mkdir(exist_ok=True)`: it looks again at what is there, and another process may have removed it by then.
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            # Not a mere number: wherever a KeyboardInterrupt comes, it is closed with what holds it.
            lock = (folder / _LOCK).open("ab")
        except (FileNotFoundError, NotADirectoryError) as error:
            if isinstance(error, FileNotFoundError) and not folder.is_symlink():
                continue  # another process has just finished and removed the folder
            message = f"{folder.name} is there and no folder of a job's work; remove it, or give another --output"
            raise JobRefused(message, output=str(output)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            lock.close()
            raise JobRefused(taken, output=str(output)) from error
        except OSError as error:
            # Network disks without a lock daemon, and some of FUSE's.
            level = logging.DEBUG if quiet else logging.WARNING
            _log.log(level, "%s cannot be locked (%s): see that this job runs only once", folder, error.strerror)
        if _is(folder / _LOCK, lock):
            break
        lock.close()
    try:
        with lock:
            try:
                yield
            finally:
                with suppress(OSError):
                    if [path.name for path in folder.iterdir()] == [_LOCK]:
                        (folder / _LOCK).unlink()
    finally:
        # After it was closed: until then NFS and FUSE keep an open file that was removed, under another name. It stays
        # with whatever is in it, such as the lock of who comes next.
        with suppress(OSError):
            folder.rmdir()


def _is(path: Path, file: IO[bytes]) -> bool:
    """Tells whether a file that was opened is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def remove_work(folder: Path) -> None:
    """Removes everything in the folder but the lock, what the rest means first."""
    for name in ("progress.json", "job.json"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def read_json(path: Path) -> Any:
    """Returns what a file holds, or None if there is none.

    Raises:
        BadFile: It is no JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return parsed_json(data, path, _ANEW)


def parsed_json(data: bytes, path: object, fix: str) -> dict[str, Any]:
    """Returns the JSON object that was read of a file. Raises BadFile, with what mends it, if it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"no JSON ({error}); {fix}", path=str(path)) from error
    if not isinstance(found, dict):
        raise BadFile(f"not a job's file; {fix}", path=str(path))
    return found


def write_json(path: Path, value: Any) -> None:
    """Replaces a file in one step; it is on the disk when this returns."""
    with replacing(path, alone=True, durable=True) as file:
        file.write(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Returns a value as a job's files hold it."""
    return json.dumps(value, indent=1).encode("ascii") + b"\n"
