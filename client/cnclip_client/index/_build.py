"""Makes an index of files of features, or puts into one what is new of them."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

from cnclip_machine import available_memory

from cnclip_client._exceptions import JobRefused
from cnclip_client._extras import require
from cnclip_client._vocabulary import Kind
from cnclip_client.extraction._work_folder import locked
from cnclip_client.features import Origin, origin_of, require_one_checkpoint
from cnclip_client.index._checksums import checksums
from cnclip_client.index._faiss import EXTRA, make, read, train, write
from cnclip_client.index._fill import FeaturesFile, fill
from cnclip_client.index._ids import ID_FILES, IdsWriter, open_ids
from cnclip_client.index._index import FEATURES, INDEX, open_searcher, require_files
from cnclip_client.index._look import Sample, look, require_distinct, sample_of, size_of
from cnclip_client.index._measure import Check, measure
from cnclip_client.index._options import Built, IndexOptions, Report
from cnclip_client.index._parts import FeatureFile, Part, feature_files, unknown_parts
from cnclip_client.index._place import put_folder, require_replaceable, restore
from cnclip_client.index._plan import Plan, plan, plan_of_factory, require_room
from cnclip_client.index._record import ANEW, RECORD, Record, is_index

__all__ = ["build_index"]

_LOG = logging.getLogger(__name__)

_CHECK = "queries.npz"
_FILES = frozenset({RECORD, INDEX, FEATURES, _CHECK, *ID_FILES})
_QUERIES = 1000
# Clusters that were found in a quarter of what there is now are too few and may have missed the rest; and what was
# exact with few rows is slow with many.
_OUTGROWN = 4
_OUTGROWING = re.compile(r".*IVF|Flat")


@dataclass(slots=True, kw_only=True, eq=False)
class _Base:
    """What rows are added to: an index that there is, or a new one without any."""

    index: Any
    plan: Plan
    size: int
    normalize: bool
    rows: int = 0
    parts: tuple[Part, ...] = ()
    trained_rows: int = 0
    check: Check | None = None


def build_index(
    features: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    kind: Kind,
    options: IndexOptions | None = None,
    *,
    queries: str | PathLike[str] | None = None,
    report: Report | None = None,
) -> Built:
    """Makes an index of files of features; to one that there is, adds those of them that it does not have yet.

    Work is in `OUTPUT.partial/`, and put in place when it is whole. To add, nothing is trained anew. Memory is bounded
    by `memory_bytes`; the disk takes an index twice while it is added to.

    Args:
        features: A file that `read_features` takes or a folder of such, or several.
        output: The index's folder.
        kind: What they are features of.
        options: How; the defaults are those of `IndexOptions`.
        queries: Features of the other kind, which a new index is tuned and measured with, then and later; by default
            some of its own.
        report: Called now and then.

    Raises:
        BadFile: Features, or the index, are damaged, of two checkpoints, or have an id twice.
        JobRefused: Something else is at the output, a file has changed, or another process works on it.
        MissingExtra: faiss is not installed, or for parquet pyarrow.
        OSError: A file cannot be read or written.
        ValueError: There are no features, the memory is too small, or faiss cannot make what was asked for.
    """
    require("faiss", extra=EXTRA)  # before minutes of reading
    paths = [Path(one) for one in ([features] if isinstance(features, str | PathLike) else features)]
    place = Path(output)
    # "." has no name to put another folder beside.
    place = place.resolve() if place.is_symlink() or place.name in ("", "..") else place
    asked = None if queries is None else Path(queries)
    building = _Building(paths, place, kind, options or IndexOptions(), asked, report or (lambda *_: None))
    partial = place.with_name(f"{place.name}.partial")
    with locked(partial, place):
        restore(partial, place)
        work = partial / "new"
        shutil.rmtree(work, ignore_errors=True)
        try:
            return building.run(work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


class _Building:
    def __init__(
        self, paths: list[Path], place: Path, kind: Kind, options: IndexOptions, queries: Path | None, report: Report
    ) -> None:
        self._paths = paths
        self._place = place
        self._kind: Kind = kind
        self._options = options
        self._queries = queries
        self._report = report
        self._began = time.monotonic()

    def run(self, work: Path) -> Built:
        require_replaceable(self._place, RECORD, _FILES)
        before = None if self._options.overwrite or not is_index(self._place) else self._before()
        origin = self._origin(before)
        files = feature_files(self._paths, self._kind, before.normalize if before else self._options.normalize)
        new = list(unknown_parts(files, before.parts if before else (), self._place))
        rows = sum(file.count() for file in new)
        if before is not None and not rows:
            return Built(record=before, added=0)
        base = self._begin(new, rows) if before is None else self._open(before, rows)
        work.mkdir()
        parts, check = self._look(work, base, new, rows)
        self._fill(work, base, new, parts, check)
        record = self._measure(work, base, parts, check, origin)
        (work / RECORD).write_text(record.as_json(), encoding="utf-8")
        put_folder(work, self._place)
        return Built(record=record, added=rows)

    def _before(self) -> Record:
        """Reads the record of the index that there is, and sees that it is the one that is meant."""
        record = Record.read(self._place)
        asked = self._options
        if record.kind != self._kind:
            raise ValueError(f"{self._place} is an index of {record.kind}s; give the {self._kind}s another --output")
        if asked.factory not in (None, record.factory):
            raise ValueError(f"{self._place} is {record.factory}, not {asked.factory}; --overwrite makes it anew")
        if asked.normalize and not record.normalize:
            raise ValueError(f"{self._place} has features as they were; leave out --normalize, or --overwrite it")
        if asked.rescore is not None and asked.rescore != (FEATURES in record.files):
            kept = "has" if FEATURES in record.files else "has no"
            raise ValueError(f"{self._place} {kept} features beside it, which --overwrite alone changes")
        return record

    def _origin(self, before: Record | None) -> Origin | None:
        """Returns what made the features, where that is known. Raises BadFile if that is two checkpoints."""
        paths = [*self._paths, *([self._queries] if self._queries else [])]
        require_one_checkpoint(*paths)
        found = next(((path, origin) for path in paths if (origin := origin_of(path))), None)
        if before is None or before.origin is None:
            return found[1] if found else None
        if found is not None:
            before.require_origin(self._place, *found)
        return before.origin

    def _begin(self, files: list[FeatureFile], rows: int) -> _Base:
        size = size_of(files) if rows else 0
        if not size:
            raise ValueError(f"there are no features in {', '.join(map(str, self._paths))}; extract some first")
        asked = self._options
        if asked.factory:
            chosen = plan_of_factory(asked.factory, rows, asked.rescore)
        else:
            chosen = plan(rows, size, self._memory(), asked.rescore)
        _LOG.info("%d features of %d numbers as %s", rows, size, chosen.factory)
        index = make(chosen.factory, size)
        return _Base(index=index, plan=chosen, size=size, normalize=asked.normalize, trained_rows=rows)

    def _open(self, before: Record, rows: int) -> _Base:
        require_room(before.rows + rows, before.memory_bytes_a_row, self._memory(), before.factory)
        require_files(self._place, before, thorough=True)
        if before.rows + rows > _OUTGROWN * before.trained_rows and _OUTGROWING.match(before.factory):
            _LOG.warning(
                "%s was made for %d features and will hold %d: --overwrite makes it anew, and likely better",
                *(self._place, before.trained_rows, before.rows + rows),
            )
        return _Base(
            index=read(self._place / INDEX, mapped=False, fix=ANEW),
            plan=plan_of_factory(before.factory, before.rows, FEATURES in before.files),
            size=before.size,
            normalize=before.normalize,
            rows=before.rows,
            parts=before.parts,
            trained_rows=before.trained_rows,
            check=Check.read(self._place / _CHECK, ANEW),
        )

    def _look(self, work: Path, base: _Base, files: list[FeatureFile], rows: int) -> tuple[tuple[Part, ...], Check]:
        """Reads everything once; returns what was read, and the queries. Trains the index if that is new."""
        sample = Sample.wanted(0 if base.index.is_trained else base.plan.train_rows, rows, base.size, seed=0)
        own = Sample.wanted(_QUERIES if base.check is None and self._queries is None else 0, rows, base.size, seed=1)
        parts = list(base.parts)
        before = closing(open_ids(self._place, base.rows)) if base.rows else nullcontext()
        with before as held, IdsWriter(work, held) as ids:
            for part in look(files, base.size, ids, [sample, own]):
                parts.append(part)
                self._report("reading", ids.rows - base.rows, rows)
            ids.finish()
        if ids.rows - base.rows != rows:
            message = f"{rows} features were counted in the files and {ids.rows - base.rows} read; run this again"
            raise JobRefused(message, output=str(self._place))
        with closing(open_ids(work, ids.rows)) as written:
            require_distinct(written, parts, self._place)
        if not base.index.is_trained:
            self._report("training", 0, 0)
            train(base.index, sample.features, base.plan.factory)
        if base.check is not None:
            return tuple(parts), base.check
        if self._queries is None:
            return tuple(parts), Check.of(own.features, own.rows)
        return tuple(parts), Check.of(sample_of(self._queries, self._kind, base.normalize, _QUERIES, base.size))

    def _fill(self, work: Path, base: _Base, files: list[FeatureFile], parts: tuple[Part, ...], check: Check) -> None:
        new = parts[len(base.parts) :]
        rows = base.rows + sum(part.rows for part in new)
        before = self._place / FEATURES if base.rows else None
        keep = FeaturesFile(work / FEATURES, rows, base.size, before) if base.plan.rescore else nullcontext()
        with keep as kept:
            fill(base.index, files, new, base.rows, check, kept, self._report)
        write(base.index, work / INDEX)
        check.write(work / _CHECK)

    def _measure(self, work: Path, base: _Base, parts: tuple[Part, ...], check: Check, origin: Origin | None) -> Record:
        """Opens what was written as a search does, and measures it."""
        self._report("measuring", 0, 0)
        base.index = None  # its memory goes, before the same is read from the file
        rows = sum(part.rows for part in parts)
        searcher = open_searcher(work, rows, base.size)
        measured = measure(searcher, check, self._options.recall)
        files = sorted(path for path in work.iterdir())
        on_disk = sum(path.stat().st_size for path in files)
        return Record(
            kind=self._kind,
            rows=rows,
            size=base.size,
            factory=base.plan.factory,
            normalize=base.normalize,
            origin=origin,
            parts=parts,
            trained_rows=base.trained_rows,
            memory_bytes_a_row=(work / INDEX).stat().st_size / rows,
            disk_bytes_a_row=on_disk / rows,
            measured=measured,
            seconds=time.monotonic() - self._began,
            files={path.name: (path.stat().st_size, tuple(checksums(path))) for path in files},
            made_by={"faiss": require("faiss", extra=EXTRA).__version__, "cn-clip-triton": _version()},
        )

    def _memory(self) -> int:
        if self._options.memory_bytes is not None:
            return self._options.memory_bytes
        half = available_memory() // 2
        if not half:
            raise ValueError("the system does not tell how much memory is free; give --memory")
        return half


def _version() -> str:
    try:
        return version("cn-clip-triton")
    except PackageNotFoundError:
        return ""
