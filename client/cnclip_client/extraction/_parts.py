"""A job whose output is a folder of parts: each is finished by itself, and several jobs may share them out.

    from cnclip_client.extraction import Sharding, extract_parts

    extract_parts(client, image_source("photos/"), "features/", sharding=Sharding(items=100_000, index=0, jobs=8))

The walk: what there is of the folder is read (`PartsFolder`), parts that came to their end but not to their place are
put there, and the items of the others are encoded in one stream (`Course`), cut where parts end.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from cnclip_client._client import Client
from cnclip_client._exceptions import BadFile, CnclipError, JobRefused
from cnclip_client._flow.vouching import vouch
from cnclip_client.extraction._course import Chain, Course, Reader, require_same_items, state_of_source
from cnclip_client.extraction._cutting import Piece, cut
from cnclip_client.extraction._encoding import Encoded, Engine, encoding_of
from cnclip_client.extraction._fingerprint import fingerprint_of, origin_in
from cnclip_client.extraction._job import require_apart, require_few
from cnclip_client.extraction._options import ExtractOptions, Summary
from cnclip_client.extraction._output import Output
from cnclip_client.extraction._parts_folder import PartRecord, PartsFolder
from cnclip_client.extraction._sharding import Sharding
from cnclip_client.extraction._work_folder import Progress, remove_work
from cnclip_client.extraction._writing import Writing
from cnclip_client.features import open_sink
from cnclip_client.sources import Source

__all__ = ["extract_parts"]

_log = logging.getLogger(__name__)


def extract_parts(
    client: Client,
    source: Source,
    output: str | os.PathLike[str],
    options: ExtractOptions | None = None,
    *,
    sharding: Sharding | None = None,
    work: str | os.PathLike[str] | None = None,
    report: Callable[[int, int], None] | None = None,
    engine: Engine | None = None,
) -> Summary:
    """Writes the features of a source's items to a folder, in parts of so many items.

    `part-00000.parquet` holds the features of the first `sharding.items` items, less those that failed, which are in
    `part-00000.parquet.errors.jsonl`; `part-00000.parquet.job.json` says that it is whole, and comes last. All parts
    together are what `extract` would have written to one file. After a crash, a kill or an error the same call goes on
    at the first part that is not whole, without reading what comes before, where the source can do so and its names,
    sizes and times are the same; otherwise ids are compared.

    Args:
        client: As for `extract`.
        source: As for `extract`.
        output: The folder, made if need be; or the address of one in an object store, such as `s3://bucket/features`,
            into which each file is put whole.
        options: As for `extract`; `repeated_ids` is `keep`, and `overwrite` removes the parts of another job, and
            those whose items have changed, but none that is whole and of this job.
        sharding: The parts' size and format, and which of them are done by this call.
        work: The folder of unfinished work and of locks if the output is in a store; by default `NAME.partial` here.
        report: Called with the items of this job's parts that are done and those failed among them.
        engine: As for `extract`.

    Returns:
        What there is of the parts that are this job's.

    Raises:
        JobRefused: The folder, or a part, is another job's or holds something else; the source has changed; or the
            same parts are being worked on.
        TooManyFailures: As `extract`, of the items of this job's parts.
        CnclipError: As `extract`.
        OSError: As `extract`.
        ValueError: The options do not go together.
    """
    options = options or ExtractOptions()
    if options.repeated_ids != "keep":
        raise ValueError(
            "parts are finished without a look at each other, so ids that come again are kept; leave out "
            "--repeated-ids, or write one file"
        )
    job = _PartsJob(
        client,
        source,
        os.fspath(output),
        options,
        sharding or Sharding(),
        Path(work) if work is not None else None,
        report or (lambda items, failures: None),
        engine,
    )
    return job.run()


class _PartsJob:
    def __init__(
        self,
        client: Client,
        source: Source,
        output: str,
        options: ExtractOptions,
        sharding: Sharding,
        work: Path | None,
        report: Callable[[int, int], None],
        engine: Engine | None,
    ) -> None:
        self._client = client
        self._source = source
        self._options = options
        self._sharding = sharding
        self._report = report
        info = client.info_of(source.kind)
        fingerprint = dict(source.fingerprint)
        job = fingerprint_of(source.kind, fingerprint, info, options)
        self._folder = PartsFolder(output, work, job, sharding, overwrite=options.overwrite)
        require_apart(fingerprint, output, ("folder", sharding.format))
        self._sink_of = partial(
            open_sink, kind=source.kind, size=info.embedding_size, dtype=options.dtype, origin=origin_in(job)
        )
        refusal = self._sink_of(self._folder.path(0)).refusal
        self._encode_items = encoding_of(client, engine, source.kind, options, refusal)

    def run(self) -> Summary:
        with self._folder.entered():
            state = state_of_source(self._source.fingerprint)
            self._settle()
            whole = self._same(self._folder.whole(), state)
            begun = self._begun(whole, state)
            before = {number: record for number, record in whole.items() if self._sharding.own(number)}
            there: list[PartRecord | Progress] = [*before.values(), *begun.values()]
            self._items = sum(one.items for one in there)
            self._failures = sum(one.failures for one in there)
            self._report(self._items, self._failures)
            fingerprint = dict(self._source.fingerprint)
            own = {**before, **self._encode(Course(self._source, self._sharding, whole, begun), begun, state)}
            self._look_again(fingerprint)
        return Summary(
            items=sum(record.items for record in own.values()),
            failures=sum(record.failures for record in own.values()),
            seconds=sum(record.seconds for record in own.values()),
            already_finished=len(own) == len(before),
            repeated=sum(record.repeated for record in own.values()),
            parts=len(own),
        )

    def _output(self, number: int) -> Output:
        path = self._folder.path(number)
        return self._folder.part(number, self._sink_of(path), path)

    # --- What there is already.

    def _settle(self) -> None:
        """Puts in its place what came to its end before this process, and no further."""
        for number in filter(self._sharding.own, self._folder.begun()):
            output = self._output(number)
            with output.locked(quiet=True):
                progress = output.begun()
                if progress is None:
                    remove_work(output.work)  # what is left of a part that is whole, or was begun in name alone
                elif progress.complete:
                    _finish(output, progress)

    def _same(self, whole: dict[int, PartRecord], state: str) -> dict[int, PartRecord]:
        """Returns the parts that are whole and of the items that there are; none is read if the source is as it was."""
        size = self._sharding.items
        doubtful = [number for number, record in whole.items() if not state or record.state != state]
        reader = Reader(self._source)
        for number in doubtful:
            record = whole[number]
            try:
                reader.go_to(number * size, ids_only=(doubtful[-1] + 1 - number) * size)
                require_same_items(reader, self._source, record.items, record.digest, number)
                if record.last and not reader.ended():
                    raise JobRefused(
                        f"the source has more than the {number * size + record.items} items that were done; "
                        "--overwrite it to do all of them",
                        output=self._folder.output,
                    )
            except JobRefused as error:
                if not self._options.overwrite:
                    raise
                _log.warning("doing part %d and those after it anew (%s)", number, error)
                for one in [one for one in whole if one >= number]:
                    if self._sharding.own(one):
                        self._folder.remove_part(one)
                    del whole[one]
                break
            whole[number] = replace(record, after=list(reader.after), state=state)
            if state and self._sharding.own(number):
                self._folder.confirm(number, whole[number])
        return whole

    def _begun(self, whole: Collection[int], state: str) -> dict[int, Progress]:
        """Returns how far the work is on those of this job's parts that are not whole."""
        begun = {}
        for number in filter(self._sharding.own, self._folder.begun()):
            output = self._output(number)
            with output.locked(quiet=True):
                if number in whole:
                    remove_work(output.work)  # it was done elsewhere meanwhile: in a store nobody holds locks
                    continue
                progress = output.begun()
                if progress is None:
                    continue
                try:
                    output.open_files(progress).close()  # that they are as long as they were
                    if not state or progress.state != state:
                        reader = Reader(self._source)
                        reader.go_to(number * self._sharding.items, ids_only=progress.items)
                        require_same_items(reader, self._source, progress.items, progress.digest, number)
                        progress = replace(progress, after=list(reader.after), state=state)
                except (BadFile, JobRefused) as error:
                    if not self._options.overwrite:
                        raise
                    _log.warning("doing part %d anew, for there is no going on with it (%s)", number, error)
                else:
                    begun[number] = progress
        return begun

    def _look_again(self, before: dict[str, Any]) -> None:
        """Tells of a source that changed while its items were read."""
        try:
            changed = dict(self._source.fingerprint) != before
        except (CnclipError, OSError):
            changed = True
        if changed:
            _log.warning(
                "the source changed while it was read, and what was read is what is written (run the same command "
                "again to see whether that is all of it)"
            )

    # --- What is to be done.

    def _encode(self, course: Course, begun: dict[int, Progress], state: str) -> dict[int, PartRecord]:
        """Does this job's parts, and returns the records of those that it did."""
        done = {}
        since = time.monotonic()
        begun_items = {number: progress.items for number, progress in begun.items()}
        pieces_of_all = cut(self._stream(course), course, begun_items, self._sharding.items)
        for number, pieces in groupby(pieces_of_all, lambda piece: piece.part):
            output = self._output(number)
            with output.locked(quiet=True):
                progress = begun.get(number) or output.begin(ours=True)
                with Writing(
                    output,
                    progress,
                    Chain(progress.digest),
                    self._source.kind,
                    self._options,
                    self._client.require_unchanged,
                    since,
                ) as writing:
                    self._write(writing, pieces, state)
                    end = course.ends[number]
                    vouch(self._client.require_unchanged, self._client.retry)
                    progress = writing.complete(last=end.last, after=end.after, state=state)
                since = time.monotonic()
                done[number] = _finish(output, progress)
        return done

    def _write(self, writing: Writing, pieces: Iterator[Piece], state: str) -> None:
        """Writes what comes out of one part."""
        for piece in pieces:
            if piece.encoded is None:
                return  # without a wait for what comes of the next one
            writing.add(piece.encoded, piece.after, state)
            self._items += len(piece.encoded.items)
            self._failures += len(piece.encoded.failures)
            self._report(self._items, self._failures)
            require_few(self._failures, piece.encoded, self._options, self._folder.failed_parts())

    def _stream(self, course: Course) -> Iterator[Encoded]:
        """Encodes the items of all parts in one stream, so that a server is kept busy."""
        return iter(()) if course.is_done() else self._encode_items(course.items())


def _finish(output: Output, progress: Progress) -> PartRecord:
    """Puts a part in its place, and returns its record."""
    record = PartRecord.of(progress)
    output.finish(progress, asdict(record))
    return record
