"""A job: a source's items in, files of their features out, whatever interrupts it."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cnclip_client._client import Client
from cnclip_client._exceptions import JobRefused, TooManyFailures
from cnclip_client._replacing import put
from cnclip_client.extraction._checkpoints import Checkpoints
from cnclip_client.extraction._encoding import Encoded, Engine, encode_items
from cnclip_client.extraction._fingerprint import differences, fingerprint_of
from cnclip_client.extraction._work_folder import (
    GrowingFiles,
    Progress,
    locked,
    read_json,
    remove_work,
    write_json,
)
from cnclip_client.features import Dtype, Sink, open_sink
from cnclip_client.features._ids import id_line
from cnclip_client.sources import Item, Source

__all__ = ["ExtractOptions", "Summary", "extract"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How a job is done. `normalize` and `dtype` belong to its output; the others may change between its runs.

    Attributes:
        normalize: Whether each feature is divided by its length.
        dtype: Of the numbers in a .parquet or .npy file.
        max_errors: How many items may fail before the job stops; without it, any number.
        overwrite: Whether to start anew where there is an output, or work on one.
        batch_size: Items a request; by default the client's.
        checkpoint_s: How often what was done is made safe, in seconds: so much work at most is done again.
    """

    normalize: bool = True
    dtype: Dtype = "float32"
    max_errors: int | None = None
    overwrite: bool = False
    batch_size: int | None = None
    checkpoint_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a finished job did.

    Attributes:
        items: How many items the source has.
        failures: How many of them have no feature; the errors file says why.
        seconds: How long it took, all its runs together.
        already_finished: Whether it was finished before, and nothing was done now.
    """

    items: int
    failures: int
    seconds: float
    already_finished: bool = False


def extract(
    client: Client,
    source: Source,
    output: str | os.PathLike[str],
    options: ExtractOptions | None = None,
    *,
    report: Callable[[int, int], None] | None = None,
    engine: Engine | None = None,
) -> Summary:
    """Writes the features of a source's items to a file, in their order.

    Beside the output come `OUTPUT.errors.jsonl`, with `{"id": ..., "reason": ...}` for each item that failed, and
    `OUTPUT.job.json`, which tells what the features are of. Until they are all there, the work is in
    `OUTPUT.partial/`: after a crash, a kill or an error the same call goes on with it, and comes to the same files.

    Args:
        client: Of the model to use; a `Retry` with a long deadline lets the job outlast a restart of the server.
        source: From `cnclip_client.sources`, or one's own.
        output: A .jsonl, .parquet or .npy file, in a folder that is there.
        options: How; the defaults are those of `ExtractOptions`.
        report: Called with the items done and those failed among them, now and then.
        engine: What encodes, such as `cnclip_client.ray.RayEngine`; without one this process does. It belongs to a
            run, not to the job: another may go on with it.

    Raises:
        JobRefused: The output, or work on it, is another job's; or the source has changed; or it is being worked on.
        TooManyFailures: More than `max_errors` items failed.
        CnclipError: The server could not be had, or a file is not what it should be.
        OSError: A file cannot be read or written.
        ValueError: The output's name or the options do not go together.
    """
    options = options or ExtractOptions()
    return _Job(client, source, Path(output), options, report or (lambda items, failures: None), engine).run()


class _Job:
    def __init__(
        self,
        client: Client,
        source: Source,
        output: Path,
        options: ExtractOptions,
        report: Callable[[int, int], None],
        engine: Engine | None,
    ) -> None:
        _require_apart(source, output)
        self._client = client
        self._source = source
        self._options = options
        self._report = report
        info = client.info_of(source.kind)
        self._encode_items = partial(encode_items, client) if engine is None else partial(engine.encode, expected=info)
        self._output = output
        self._sink: Sink = open_sink(output, source.kind, size=info.embedding_size, dtype=options.dtype)
        self._fingerprint = fingerprint_of(source, info, normalize=options.normalize, dtype=options.dtype)
        self._folder = output.with_name(f"{output.name}.partial")
        self._job_file = output.with_name(f"{output.name}.job.json")
        self._places = {"errors": output.with_name(f"{output.name}.errors.jsonl"), **self._sink.outputs}

    def run(self) -> Summary:
        with locked(self._folder, self._output):
            if self._options.overwrite:
                self._job_file.unlink(missing_ok=True)
                remove_work(self._folder)
            elif (finished := self._finished()) is not None:
                return finished
            self._claim()
            progress = Progress.read(self._folder / "progress.json")
            if not progress.complete:
                progress = self._encode(progress)
            with _room():
                self._finish(progress)
        return Summary(items=progress.items, failures=progress.failures, seconds=progress.seconds)

    def _finished(self) -> Summary | None:
        """Returns what the job did if it is finished, and removes what work there is left of it."""
        found = read_json(self._job_file)
        if found is None:
            return None
        self._require_same(found.get("job"), self._job_file)
        if not all(place.exists() for place in self._places.values()):
            # Somebody removed one of them: they are made anew.
            for place in (self._job_file, *self._places.values()):
                place.unlink(missing_ok=True)
            return None
        if "size_bytes" not in self._source.fingerprint:
            self._skip(self._source.items(found["items"]), found["items"], found["digest"], ends=True)
        remove_work(self._folder)
        counts = {name: found[name] for name in ("items", "failures", "seconds")}
        return Summary(**counts, already_finished=True)

    def _claim(self) -> None:
        """Makes the work folder this job's, or sees that it is."""
        path = self._folder / "job.json"
        found = read_json(path)
        if found is not None:
            self._require_same(found.get("job"), path)
            return
        if not self._options.overwrite and (there := [place for place in self._places.values() if place.exists()]):
            raise JobRefused(
                f"{there[0].name} is there and no job of this command's; give another --output, or --overwrite it",
                output=str(self._output),
            )
        write_json(path, {"job": self._fingerprint})

    def _require_same(self, known: Any, path: Path) -> None:
        if different := differences(known if isinstance(known, dict) else {}, self._fingerprint):
            raise JobRefused(
                f"{path.name} is of another job ({'; '.join(different)}); give another --output, or --overwrite it",
                output=str(self._output),
            )

    def _encode(self, progress: Progress) -> Progress:
        """Does the rest of the source's items."""
        items = self._source.items(progress.items)
        digest = self._skip(items, progress.items, progress.digest)
        self._report(progress.items, progress.failures)
        started = time.monotonic() - progress.seconds
        with _room():
            begins = {"errors": b"", **self._sink.begins}
            files = GrowingFiles(self._folder, begins, progress.sizes)
        with Checkpoints(files, self._folder / "progress.json", self._client.require_unchanged) as checkpoints:
            try:
                for encoded in self._encode_items(
                    self._source.kind,
                    items,
                    normalize=self._options.normalize,
                    dtype=self._options.dtype,
                    batch_size=self._options.batch_size,
                    refusal=self._sink.refusal,
                ):
                    with _room():
                        self._append(files, encoded)
                        for item in encoded.items:
                            self._add(digest, item)
                        # In one step: whatever interrupts, `progress` is of whole blocks.
                        progress = Progress(
                            items=progress.items + len(encoded.items),
                            failures=progress.failures + len(encoded.failures),
                            digest=digest.hexdigest(),
                            seconds=time.monotonic() - started,
                            sizes=dict(files.sizes),
                        )
                        checkpoints.now_and_then(progress, self._options.checkpoint_s)
                    self._report(progress.items, progress.failures)
                    self._require_few(progress, encoded)
            except BaseException:
                checkpoints.save_if_possible(progress)
                raise
            progress = replace(progress, digest=digest.hexdigest(), sizes=dict(files.sizes), complete=True)
            with _room():
                checkpoints.save(progress)  # the client has asked after its last answer
        return progress

    def _skip(self, items: Iterator[Item], count: int, expected: str, *, ends: bool = False) -> Any:
        """Passes over the items that are done, and returns the digest of their ids to go on with."""
        digest = hashlib.blake2b(digest_size=16)
        seen = 0
        while seen < count and (item := next(items, None)) is not None:
            self._add(digest, item)
            seen += 1
        changed = seen < count or (count > 0 and digest.hexdigest() != expected)
        if changed or (ends and next(items, None) is not None):
            raise JobRefused(
                f"the source has changed: its first {count} items are not those that were done; give another "
                "--output, or --overwrite it"
                if changed
                else f"the source has more than the {count} items that were done; --overwrite it to do all of them",
                output=str(self._output),
            )
        return digest

    def _add(self, digest: Any, item: Item) -> None:
        # Lines have no ids of their own: texts count by their words as well.
        words = item.value if self._source.kind == "text" else None
        digest.update(id_line([item.id, words]))

    def _append(self, files: GrowingFiles, encoded: Encoded) -> None:
        if encoded.ids:
            for name, data in self._sink.encode(encoded.ids, encoded.features).items():
                files.append(name, data)
        for failure in encoded.failures:
            line = b'{"id": %b, "reason": %b}\n' % (id_line(failure.id), id_line(failure.reason))
            files.append("errors", line)

    def _require_few(self, progress: Progress, encoded: Encoded) -> None:
        allowed = self._options.max_errors
        if allowed is not None and progress.failures > allowed and encoded.failures:
            last = encoded.failures[-1]
            raise TooManyFailures(failures=progress.failures, max_errors=allowed, last=f"{last.id}: {last.reason}")

    def _finish(self, progress: Progress) -> None:
        """Makes the outputs and puts them in place; all of it may be cut off at any moment, and done again."""
        self._sink.assemble(self._folder, progress.items - progress.failures)
        for name, place in self._places.items():
            made = self._folder / name
            if made.exists():  # else it is in its place already
                put(made, place)
        known = {key: value for key, value in asdict(progress).items() if key not in ("sizes", "complete")}
        write_json(self._job_file, {"job": self._fingerprint, **known})
        remove_work(self._folder)


def _require_apart(source: Source, output: Path) -> None:
    """Raises ValueError if the output, and the work on it, would be among what is read."""
    read = source.fingerprint.get("path") if source.fingerprint.get("format") == "folder" else None
    if isinstance(read, str) and output.resolve().is_relative_to(Path(read).resolve()):
        raise ValueError(f"{output} is inside {read}, all of which is read; put it elsewhere")


@contextmanager
def _room() -> Iterator[None]:
    """Says of a full disk what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        words = f"{error.strerror}; what was done is kept: make room and run the same command again"
        raise OSError(error.errno, words, error.filename) from error
