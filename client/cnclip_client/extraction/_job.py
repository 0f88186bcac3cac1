"""A job: a source's items in, files of their features out, whatever interrupts it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cnclip_client._client import Client
from cnclip_client._exceptions import BadFile, JobRefused, TooManyFailures
from cnclip_client._replacing import behind_links, kind_of_special, put
from cnclip_client.extraction._checkpoints import Checkpoints
from cnclip_client.extraction._encoding import Encoded, Engine, encode_items
from cnclip_client.extraction._fingerprint import REPEATED_IDS, differences, fingerprint_of
from cnclip_client.extraction._options import ExtractOptions, Summary
from cnclip_client.extraction._repeats import Repeats
from cnclip_client.extraction._work_folder import (
    GrowingFiles,
    Progress,
    locked,
    read_json,
    remove_work,
    write_json,
)
from cnclip_client.features import Sink, open_sink
from cnclip_client.features._ids import id_line
from cnclip_client.sources import Item, Source

__all__ = ["extract"]

_log = logging.getLogger(__name__)


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
    If the output is a link, all of this is beside what it leads to.

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
        output = _file(output, output)
        _require_apart(source, output)
        self._client = client
        self._source = source
        self._options = options
        self._report = report
        info = client.info_of(source.kind)
        self._encode_items = partial(encode_items, client) if engine is None else partial(engine.encode, expected=info)
        self._output = output
        self._sink: Sink = open_sink(output, source.kind, size=info.embedding_size, dtype=options.dtype)
        self._first_only = options.repeated_ids == "first"
        self._fingerprint = fingerprint_of(
            source,
            info,
            normalize=options.normalize,
            dtype=options.dtype,
            first_only=self._first_only,
            preprocess=options.preprocess,
        )
        self._folder = output.with_name(f"{output.name}.partial")
        self._job_file = output.with_name(f"{output.name}.job.json")
        self._places = {"errors": output.with_name(f"{output.name}.errors.jsonl"), **self._sink.outputs}
        for place in (self._job_file, *self._places.values()):
            _file(place, output)

    def run(self) -> Summary:
        with locked(self._folder, self._output):
            progress = self._begun()
            if progress is None:
                if not self._options.overwrite and (finished := self._finished()) is not None:
                    return finished
                progress = self._begin()
            if not progress.complete:
                progress = self._encode(progress)
            self._require_unchanged(progress)
            with _room():
                self._finish(progress)
        return Summary(
            items=progress.items, failures=progress.failures, seconds=progress.seconds, repeated=progress.repeated
        )

    def _begun(self) -> Progress | None:
        """Returns how far the work on this job is, or None if there is none to go on with."""
        path = self._folder / "job.json"
        try:
            progress = Progress.read(self._folder / "progress.json")
            found = read_json(path)
            if progress is None or found is None:
                return None  # nothing was made safe yet
            self._require_same(found.get("job"), path, progress.repeated)
        except (BadFile, JobRefused) as error:
            if not self._options.overwrite:
                raise
            _log.warning("beginning anew, for there is no going on with what was done (%s)", error)
            return None
        if self._options.overwrite and progress.items:
            _log.warning("going on after %d items; to begin anew remove %s first", progress.items, self._folder)
        if found.get("job") != self._fingerprint:
            write_json(path, {"job": self._fingerprint})
        return progress

    def _begin(self) -> Progress:
        """Makes the work folder this job's. What there is of the output stays until there is something else."""
        there = [place for place in self._places.values() if place.exists()]
        if there and not self._options.overwrite and not self._job_file.exists():
            raise JobRefused(
                f"{there[0].name} is there and no job of this command's; give another --output, or --overwrite it",
                output=str(self._output),
            )
        remove_work(self._folder)
        write_json(self._folder / "job.json", {"job": self._fingerprint})
        return Progress()

    def _finished(self) -> Summary | None:
        """Returns what the job did if it is finished, and removes what work there is left of it."""
        found = self._finished_job()
        if found is None:
            return None
        if gone := [place for place in self._sink.outputs.values() if not place.exists()]:
            _log.warning("%s is gone: encoding anew; what is left of the job stays until that is whole", gone[0])
            return None
        if found["failures"] and not self._places["errors"].exists():
            _log.warning("%s is gone, of %d failures", self._places["errors"], found["failures"])
        if "size_bytes" not in self._source.fingerprint:
            self._skip(self._source.items(found["items"]), found["items"], found["digest"], ends=True)
        remove_work(self._folder)
        counts = {name: found[name] for name in ("items", "failures", "seconds")}
        return Summary(**counts, already_finished=True, repeated=found.get("repeated", 0))

    def _finished_job(self) -> dict[str, Any] | None:
        """Returns what is written of this job as a finished one, or None. Raises BadFile, JobRefused."""
        found = read_json(self._job_file)
        if found is None:
            return None
        wanted = {"items": int, "failures": int, "seconds": float, "digest": str}
        if not all(type(found.get(name)) is kind for name, kind in wanted.items()):
            raise BadFile("not a job's file; start anew with --overwrite", path=str(self._job_file))
        self._require_same(found.get("job"), self._job_file, found.get("repeated"))
        return found  # type: ignore[no-any-return]

    def _require_unchanged(self, progress: Progress) -> None:
        """Refuses to put features in the place of a finished job's whose items were others."""
        if self._options.overwrite:
            return
        found = self._finished_job()
        if found is not None and (found["items"], found["digest"]) != (progress.items, progress.digest):
            raise JobRefused(
                "the source has changed since this was finished; what was done now is kept: --overwrite it to put it "
                "in place",
                output=str(self._output),
            )

    def _require_same(self, known: Any, path: Path, repeated: int | None) -> None:
        known, now = known if isinstance(known, dict) else {}, self._fingerprint
        if repeated == 0:
            # What would have become of repeated ids makes no difference.
            known, now = ({name: value for name, value in one.items() if name != REPEATED_IDS} for one in (known, now))
        if different := differences(known, now):
            raise JobRefused(
                f"{path.name} is of another job ({'; '.join(different)}); give another --output, or --overwrite it",
                output=str(self._output),
            )

    def _encode(self, progress: Progress) -> Progress:
        """Does the rest of the source's items."""
        items = self._source.items(progress.items)
        try:
            digest = self._skip(items, progress.items, progress.digest)
            files = self._open_files(progress)
        except (JobRefused, BadFile) as error:
            of_work = isinstance(error, JobRefused) or Path(error.path).parent == self._folder
            if not (of_work and progress.items and self._options.overwrite):
                raise
            _log.warning("beginning anew, for there is no going on with what was done (%s)", error)
            return self._encode(self._begin())
        self._report(progress.items, progress.failures)
        started = time.monotonic() - progress.seconds
        with (
            Repeats(self._folder / "seen", self._sink.id_bytes) as repeats,
            Checkpoints(files, self._folder / "progress.json", self._client.require_unchanged) as checkpoints,
        ):
            with _room():
                repeats.add_file(self._folder / "keys")
            try:
                for encoded in self._encode_items(
                    self._source.kind,
                    items,
                    normalize=self._options.normalize,
                    dtype=self._options.dtype,
                    batch_size=self._options.batch_size,
                    refusal=self._sink.refusal,
                    preprocess=self._options.preprocess,
                ):
                    with _room():
                        repeated = self._append(files, repeats, encoded)
                        for item in encoded.items:
                            self._add(digest, item)
                        # In one step: whatever interrupts, `progress` is of whole blocks.
                        progress = Progress(
                            items=progress.items + len(encoded.items),
                            failures=progress.failures + len(encoded.failures),
                            digest=digest.hexdigest(),
                            seconds=time.monotonic() - started,
                            sizes=dict(files.sizes),
                            repeated=progress.repeated + repeated,
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

    def _open_files(self, progress: Progress) -> GrowingFiles:
        begins = {"errors": b"", "keys": b"", **self._sink.begins}
        with _room():
            return GrowingFiles(self._folder, begins, progress.sizes)

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

    def _append(self, files: GrowingFiles, repeats: Repeats, encoded: Encoded) -> int:
        """Writes what came out, and returns how many of its ids had come before."""
        ids, features = encoded.ids, encoded.features
        keys = repeats.keys(ids)
        again = repeats.add(keys)
        if again and self._options.repeated_ids == "refuse":
            raise JobRefused(
                f"the id {ids[again[0]]!r} comes again in the source; mend it, or --repeated-ids first or keep",
                output=str(self._output),
            )
        if again and self._first_only:
            kept = np.setdiff1d(np.arange(len(ids)), again)
            ids, features, keys = tuple(ids[row] for row in kept), features[kept], [keys[row] for row in kept]
        if ids:
            for name, data in self._sink.encode(ids, features).items():
                files.append(name, data)
            files.append("keys", b"".join(keys))
        for failure in encoded.failures:
            line = b'{"id": %b, "reason": %b}\n' % (id_line(failure.id), id_line(failure.reason))
            files.append("errors", line)
        return len(again)

    def _require_few(self, progress: Progress, encoded: Encoded) -> None:
        allowed = self._options.max_errors
        if allowed is not None and progress.failures > allowed and encoded.failures:
            last = encoded.failures[-1]
            raise TooManyFailures(failures=progress.failures, max_errors=allowed, last=f"{last.id}: {last.reason}")

    def _finish(self, progress: Progress) -> None:
        """Makes the outputs and puts them in place; all of it may be cut off at any moment, and done again."""
        left_out = progress.failures + (progress.repeated if self._first_only else 0)
        self._sink.assemble(self._folder, progress.items - left_out)
        for name, place in self._places.items():
            made = self._folder / name
            if made.exists():  # else it is in its place already
                put(made, place)
        known = {key: value for key, value in asdict(progress).items() if key not in ("sizes", "complete")}
        write_json(self._job_file, {"job": self._fingerprint, **known})
        remove_work(self._folder)


def _file(place: Path, output: Path) -> Path:
    """Returns the file that a place stands for. Raises JobRefused if no file can be put there."""
    target = behind_links(place)
    special = "an open file of this process" if target is None else kind_of_special(target)
    if target is None or special:
        message = (
            f"{place.name} is {special}, and a job's output a file that is put in its place; give another --output"
        )
        raise JobRefused(message, output=str(output))
    return target


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
