"""Approximate indexes of made-up features beside exact search: how long they take to make, and what they find.

The features are made like CLIP's: unit vectors around a mean that all images have in common (their narrow cone), in
clusters of very different sizes, spread by a spectrum that falls as 1/i. Texts have a mean of their own (the gap
between the modalities), and each is drawn towards one image, with noise of the same spectrum: like texts, they come
from elsewhere than what is indexed, which approximate search finds harder than rows of its own.
"""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from cnclip_client.index import Index
from cnclip_client.retrieval import Features, Gallery, Hits, Id, read_features, search
from numpy.typing import NDArray

from cnclip_bench.processes import watching
from cnclip_bench.stats import timed_in_turns

__all__ = ["MadeUp", "Measurement", "measure_index"]

_K = 10
_ROWS_A_PART = 100_000
_ROWS_A_BLOCK = 16_384
# Shares of a feature's variance: its cluster's, the rest its own; and of a text's: its image's, the rest noise.
_CLUSTER, _OWN = 0.5, 0.5
_OF_IMAGE, _NOISE = 0.6, 0.4
_ALONE = 100


@dataclass(frozen=True)
class MadeUp:
    """Features that are made up, the same for the same numbers.

    Attributes:
        rows: How many images.
        size: D.
        clusters: How many clusters they are in, the i-th in size holding a share of about i^-0.7.
        seed: Of the random numbers.
    """

    rows: int
    size: int
    clusters: int
    seed: int = 0

    def images(self) -> Iterator[NDArray[np.float32]]:
        """Yields float32 [n, D], blocks of the images' features."""
        rng = np.random.default_rng([self.seed, 1])
        mean, _, spread, turned = self._space()
        centres = rng.standard_normal((self.clusters, self.size), np.float32)
        shares = (np.arange(self.clusters) + 10.0) ** -0.7
        for start in range(0, self.rows, _ROWS_A_BLOCK):
            rows = min(_ROWS_A_BLOCK, self.rows - start)
            cluster = rng.choice(self.clusters, rows, p=shares / shares.sum())
            own = rng.standard_normal((rows, self.size), np.float32)
            mixed = _CLUSTER**0.5 * centres[cluster] + _OWN**0.5 * own
            yield _unit(mean + (mixed * spread) @ turned)

    def texts(self, images: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        """Returns float32 [n, D], a text of each image."""
        mean, other, spread, turned = self._space()
        noise = np.random.default_rng([self.seed, 2, seed]).standard_normal(images.shape, np.float32)
        apart = images - mean * (images @ mean)[:, None]
        return _unit(other + _OF_IMAGE * _unit(apart) + _NOISE * (noise * spread) @ turned)

    def _space(self) -> tuple[NDArray[np.float32], ...]:
        rng = np.random.default_rng([self.seed, 0])
        means = _unit(rng.standard_normal((2, self.size), np.float32))
        spectrum = 1 / np.arange(1, self.size + 1)
        turned = np.linalg.qr(rng.standard_normal((self.size, self.size)))[0].astype(np.float32)
        return means[0], means[1], np.sqrt(spectrum / spectrum.sum()).astype(np.float32), turned


@dataclass(frozen=True)
class Measurement:
    """One index, by `cnclip index` with so much memory.

    Attributes:
        memory: What --memory was.
        factory, parameters: What it chose, and tuned.
        minutes: From start to end of the command.
        cpu_minutes: That all its threads took of the processor, which others' load sways less.
        peak_mib: Of its process, pages of files that it had mapped included.
        own_recall: recall@10 as the command measured it, on the queries that it was given.
        recall: recall@10 of other queries, against exact search.
        ms, exact_ms: A query, all of them asked at once: medians of rounds in turns.
        alone_ms, exact_alone_ms: A query that comes alone, likewise.
        memory_bytes, disk_bytes: A vector.
    """

    memory: str
    factory: str
    parameters: str
    minutes: float
    cpu_minutes: float
    peak_mib: float
    own_recall: float
    recall: float
    ms: float
    exact_ms: float
    alone_ms: float
    exact_alone_ms: float
    memory_bytes: float
    disk_bytes: float


def measure_index(made: MadeUp, queries: int, memories: list[str], rounds: int, folder: Path) -> Iterator[Measurement]:
    """Makes features and, with each memory, an index of them; yields what each comes to.

    Args:
        made: The features.
        queries: How many texts ask to tune, and as many others to measure.
        memories: For --memory.
        rounds: How often searches are timed.
        folder: Where features and indexes are kept while this runs: 4 D bytes a row, and the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="index-", dir=folder) as work:
        tuning, asked = _write(made, queries, Path(work))
        built = [_build(Path(work), tuning, memory) for memory in memories]
        with Gallery(
            read_features(Path(work) / "features", "image"), memory_bytes=8 * made.rows * made.size
        ) as gallery:
            exact = _ids(search([asked], gallery, k=_K))
            for memory, cost in zip(memories, built, strict=True):
                with Index.open(_place(Path(work), memory)) as index:
                    yield _measure(index, gallery, asked, exact, rounds, memory, cost)


def _place(folder: Path, memory: str) -> Path:
    return folder / f"{memory}.index"


def _build(folder: Path, tuning: Path, memory: str) -> tuple[float, float, float]:
    """Runs the command; returns minutes, those of the processor, and MiB."""
    command = [str(Path(sys.executable).with_name("cnclip")), "index", "images", str(folder / "features")]
    command += ["--output", str(_place(folder, memory)), "--memory", memory, "--queries", str(tuning), "--json"]
    began, before = time.perf_counter(), _children_s()
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        watching(process.pid) as peak,
    ):
        _, told = process.communicate()
    if process.returncode:
        raise ValueError(f"{' '.join(command)}: {told.strip()}")
    return (time.perf_counter() - began) / 60, (_children_s() - before) / 60, peak.mib


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measure(
    index: Index,
    gallery: Gallery,
    asked: Features,
    exact: list[tuple[Id, ...]],
    rounds: int,
    memory: str,
    cost: tuple[float, float, float],
) -> Measurement:
    found = _ids(index.search(asked, k=_K))
    shares = [len(set(one) & set(right)) / len(right) for one, right in zip(found, exact, strict=True)]
    minutes, cpu_minutes, peak_mib = cost
    few = [asked[row : row + 1] for row in range(min(_ALONE, len(asked)))]
    timings = timed_in_turns(
        {
            "exact": lambda: _ids(search([asked], gallery, k=_K)),
            "index": lambda: _ids(index.search(asked, k=_K)),
            "exact alone": lambda: [_ids(search([one], gallery, k=_K)) for one in few[:10]],
            "index alone": lambda: [_ids(index.search(one, k=_K)) for one in few],
        },
        rounds,
        time.perf_counter,
    )
    queries = {"exact": len(asked), "index": len(asked), "exact alone": len(few[:10]), "index alone": len(few)}
    ms = {name: 1000 * float(np.median(seconds)) / queries[name] for name, seconds in timings.items()}
    record = index.record
    return Measurement(
        memory=memory,
        factory=record.factory,
        parameters=record.measured.parameters,
        minutes=minutes,
        cpu_minutes=cpu_minutes,
        peak_mib=peak_mib,
        own_recall=record.measured.recall_at_10,
        recall=float(np.mean(shares)),
        ms=ms["index"],
        exact_ms=ms["exact"],
        alone_ms=ms["index alone"],
        exact_alone_ms=ms["exact alone"],
        memory_bytes=record.memory_bytes_a_row,
        disk_bytes=record.disk_bytes_a_row,
    )


def _ids(every: Iterable[Hits]) -> list[tuple[Id, ...]]:
    return [hits.ids for hits in every]


def _write(made: MadeUp, queries: int, folder: Path) -> tuple[Path, Features]:
    """Writes images in parts, and texts to tune with; returns where the latter are, and others to ask."""
    pa: Any = importlib.import_module("pyarrow")
    pq: Any = importlib.import_module("pyarrow.parquet")
    lists = pa.list_(pa.float32(), made.size)
    (folder / "features").mkdir()
    chosen = np.random.default_rng([made.seed, 3]).choice(made.rows, 2 * queries, replace=False)
    picked = np.empty((2 * queries, made.size), np.float32)
    schema = pa.schema([("image_id", pa.int64()), ("feature", lists)])
    by_row = zip(count(0, _ROWS_A_BLOCK), made.images(), strict=False)
    for part, blocks in groupby(by_row, key=lambda one: one[0] // _ROWS_A_PART):
        with pq.ParquetWriter(folder / "features" / f"part-{part:05d}.parquet", schema) as writer:
            for row, block in blocks:
                features = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=lists)
                writer.write_table(pa.table({"image_id": pa.array(range(row, row + len(block))), "feature": features}))
                inside = (chosen >= row) & (chosen < row + len(block))
                picked[inside] = block[chosen[inside] - row]
    texts = made.texts(picked, seed=0)
    features = pa.FixedSizeListArray.from_arrays(pa.array(texts[:queries].ravel()), type=lists)
    pq.write_table(pa.table({"text_id": pa.array(range(queries)), "feature": features}), folder / "texts.parquet")
    return folder / "texts.parquet", Features(np.arange(queries, 2 * queries), texts[queries:])


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)
