"""A job with one output: a source's items in, a file of their features out, whatever interrupts it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnclip_client._client import Client
from cnclip_client._exceptions import BadFile, CnclipError, JobRefused, TooManyFailures
from cnclip_client._remote import is_remote
from cnclip_client._replacing import takes
from cnclip_client.extraction._course import state_of_source
from cnclip_client.extraction._encoding import Encoded, Engine, encoding_of
from cnclip_client.extraction._fingerprint import fingerprint_of, lasting, origin_in
from cnclip_client.extraction._options import ExtractOptions, Summary
from cnclip_client.extraction._output import Output, file_for
from cnclip_client.extraction._work_folder import Progress, remove_work
from cnclip_client.extraction._writing import Digest, Writing, told_apart
from cnclip_client.features import open_sink
from cnclip_client.sources import Item, Source

__all__ = ["extract", "require_apart", "require_few"]

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
        TooManyFailures: More than `max_errors` items failed; or, without it, none of the first 1,000 could be read.
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
        output = file_for(output, output)
        fingerprint = self._fingerprint = dict(source.fingerprint)  # in a store, each is another listing
        # A .parquet beside others would be read as one of them.
        require_apart(fingerprint, output, ("folder", output.suffix.removeprefix(".")))
        self._client = client
        self._source = source
        self._options = options
        self._report = report
        info = client.info_of(source.kind)
        job = fingerprint_of(source.kind, fingerprint, info, options)
        sink = open_sink(output, source.kind, size=info.embedding_size, dtype=options.dtype, origin=origin_in(job))
        self._output = Output(output, sink, job, overwrite=options.overwrite)
        require_kept(fingerprint, output, (self._output.record, *self._output.places.values()))
        self._encode_items = encoding_of(client, engine, source.kind, options, sink.refusal)

    def run(self) -> Summary:
        with self._output.locked():
            self._state = state_of_source(self._fingerprint)
            progress = self._output.begun()
            if progress is None:
                if not self._options.overwrite and (finished := self._finished()) is not None:
                    return finished
                progress = self._output.begin()
            if not progress.complete:
                progress = self._encode(progress)
            self._require_same_items(progress)
            self._output.finish(progress, {"state": progress.state})
        return Summary(
            items=progress.items, failures=progress.failures, seconds=progress.seconds, repeated=progress.repeated
        )

    def _finished(self) -> Summary | None:
        """Returns what the job did if it is finished, and removes what work there is left of it."""
        found = self._output.finished()
        if found is None:
            return None
        if gone := self._output.gone():
            _log.warning("%s is gone: encoding anew; what is left of the job stays until that is whole", gone[0])
            return None
        if found["failures"] and not self._output.places["errors"].exists():
            _log.warning("%s is gone, of %d failures", self._output.places["errors"], found["failures"])
        if not self._state or found["state"] != self._state:
            self._skip(self._source.items(found["items"]), found["items"], found["digest"], ends=True)
            if self._state:
                self._output.confirm(found, self._state)
        remove_work(self._output.work)
        counts = {name: found[name] for name in ("items", "failures", "seconds", "repeated")}
        return Summary(**counts, already_finished=True)

    def _require_same_items(self, progress: Progress) -> None:
        """Refuses to put features in the place of a finished job's whose items were others."""
        if self._options.overwrite:
            return
        found = self._output.finished()
        if found is not None and (found["items"], found["digest"]) != (progress.items, progress.digest):
            raise JobRefused(
                "the source has changed since this was finished; what was done now is kept: --overwrite it to put it "
                "in place",
                output=str(self._output.path),
            )

    def _encode(self, progress: Progress) -> Progress:
        """Does the rest of the source's items."""
        items = self._source.items(progress.items)
        try:
            digest = self._skip(items, progress.items, progress.digest)
            writing = Writing(
                self._output, progress, digest, self._source.kind, self._options, self._client.require_unchanged
            )
        except (JobRefused, BadFile) as error:
            of_work = isinstance(error, JobRefused) or Path(error.path).parent == self._output.work
            if not (of_work and progress.items and self._options.overwrite):
                raise
            _log.warning("beginning anew, for there is no going on with what was done (%s)", error)
            return self._encode(self._output.begin())
        self._report(progress.items, progress.failures)
        with writing:
            for encoded in self._encode_items(items):
                writing.add(encoded)
                self._report(writing.progress.items, writing.progress.failures)
                require_few(writing.progress.failures, encoded, self._options, self._output.work)
            self._look_again(writing.progress.items, digest)
            return writing.complete(state=self._state)  # the client has asked after its last answer

    def _look_again(self, items: int, digest: Digest) -> None:
        """Tells of a source that is no more what was read, at the end of which a job would otherwise pass for whole."""
        try:
            now = dict(self._source.fingerprint)
            if now == self._fingerprint:
                return
            self._skip(self._source.items(items), items, digest.hexdigest(), ends=True)
        except (CnclipError, OSError) as error:
            _log.warning("the source changed while it was read, and what was read is what is written (%s)", error)
        else:  # of the same items: so it is the source that this job is of
            self._output.adopt(lasting(now))
            self._state = state_of_source(now)

    def _skip(self, items: Iterator[Item], count: int, expected: str, *, ends: bool = False) -> Digest:
        """Passes over the items that are done, and returns the digest of their ids to go on with."""
        digest = hashlib.blake2b(digest_size=16)
        seen = 0
        while seen < count and (item := next(items, None)) is not None:
            digest.update(told_apart(self._source.kind, item))
            seen += 1
        changed = seen < count or (count > 0 and digest.hexdigest() != expected)
        if changed or (ends and next(items, None) is not None):
            raise JobRefused(
                f"the source has changed: its first {count} items are not those that were done; give another "
                "--output, or --overwrite it"
                if changed
                else f"the source has more than the {count} items that were done; --overwrite it to do all of them",
                output=str(self._output.path),
            )
        return digest


def require_few(failures: int, encoded: Encoded, options: ExtractOptions, work: object) -> None:
    """Raises TooManyFailures, which names the work to remove, if more items have failed than may."""
    allowed = options.max_errors
    if allowed is not None and failures > allowed and encoded.failures:
        last = encoded.failures[-1]
        raise TooManyFailures(failures=failures, max_errors=allowed, last=f"{last.id}: {last.reason}", work=str(work))


def require_kept(fingerprint: Mapping[str, Any], output: Path, places: Iterable[Path]) -> None:
    """Raises ValueError if a file that a job puts in its place, be it told to overwrite, is what its source reads."""
    read = fingerprint.get("path")
    if isinstance(read, str) and not is_remote(read) and Path(read).is_file():
        for place in places:
            if takes(place, Path(read)):
                raise ValueError(f"{place} is what is read, and would be replaced; give another --output than {output}")


def require_apart(fingerprint: Mapping[str, Any], output: str | os.PathLike[str], formats: Sequence[str]) -> None:
    """Raises ValueError if the output, and the work on it, would be among what a source of some formats reads."""
    read = fingerprint.get("path") if fingerprint.get("format") in formats else None
    if not isinstance(read, str):
        return
    output = os.fspath(output)
    if is_remote(read) or is_remote(output):
        inside = f"{output.rstrip('/')}/".startswith(f"{read.rstrip('/')}/")
    else:
        inside = Path(read).is_dir() and Path(output).resolve().is_relative_to(Path(read).resolve())
    if inside:
        raise ValueError(f"{output} is inside {read}, all of which is read; put it elsewhere")
