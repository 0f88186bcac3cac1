"""The comparison from beginning to end: each side encodes everything, and what both have is compared."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnclip_builder.comparison.distances import Distances, measure_distances
from cnclip_builder.comparison.encoded import Encoded, encode_source
from cnclip_builder.comparison.inputs import Id, Inputs
from cnclip_builder.comparison.retrieval import Retrieval, compare_retrieval, nearest
from cnclip_builder.comparison.sides import Facts, Named, open_side
from cnclip_builder.errors import BuildError, SettingError
from cnclip_builder.tensors import TOWERS, Tower

logger = logging.getLogger(__name__)

_DIRECTIONS: Mapping[str, tuple[Tower, Tower]] = {
    "text-to-image": ("text", "image"),
    "image-to-text": ("image", "text"),
}


@dataclass(frozen=True)
class Compared:
    """Items of one kind that both sides have features of.

    Attributes:
        ids: of them.
        a: float32 `[N, D]`, by A; mapped from a file.
        b: float32 `[N, E]`, by B.
        left_out: by id, why an item has no feature of A, of B, or of both.
    """

    ids: list[Id]
    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]
    left_out: dict[Id, str]


@dataclass(frozen=True)
class Note:
    """What has to be known to read the figures.

    Attributes:
        words: in English, with a place for each number; `words.json` has them in Chinese.
        numbers: by the names of their places.
    """

    words: str
    numbers: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.words.format(**self.numbers)


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        a: what A is.
        b: what B is.
        rows: by kind of item, how many were compared.
        left_out: by kind of item and id, why one was not.
        distances: by kind of item; empty where the two have features of different lengths.
        retrieval: by direction; empty without images and texts.
        absent_images: how many of the images that pairs name are not among the images.
    """

    a: Facts
    b: Facts
    rows: Mapping[Tower, int]
    left_out: Mapping[Tower, Mapping[Id, str]]
    distances: Mapping[Tower, Distances]
    retrieval: Mapping[str, Retrieval]
    absent_images: int = 0

    @property
    def notes(self) -> list[Note]:
        """What has to be known to read the figures."""
        told = []
        if self.a.embedding_size != self.b.embedding_size:
            told.append(
                Note(
                    "A's features have {a} numbers and B's {b}: they can't be compared as vectors, and stored features "
                    "of one are of no use to the other. What they find can be.",
                    {"a": self.a.embedding_size, "b": self.b.embedding_size},
                )
            )
        elif self.a.checkpoint_sha256 != self.b.checkpoint_sha256:
            told.append(
                Note(
                    "The two come of different checkpoints: distances tell whether features that are stored already "
                    "may stay. Which of them finds better, recall alone tells."
                )
            )
        if self.a.context_length != self.b.context_length:
            lengths = {"a": self.a.context_length, "b": self.b.context_length}
            told.append(Note("A reads {a} tokens of a text, B {b}.", lengths))
        if self.absent_images:
            told.append(
                Note(
                    "{count} of the images that pairs name are not among the images: both miss them.",
                    {"count": self.absent_images},
                )
            )
        return told

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "a": asdict(self.a),
            "b": asdict(self.b),
            "notes": [str(note) for note in self.notes],
            **{
                f"{tower}s": {
                    "compared": rows,
                    "left_out": [{"id": one, "reason": reason} for one, reason in self.left_out[tower].items()],
                    "distances": self.distances[tower].as_dict() if tower in self.distances else None,
                }
                for tower, rows in self.rows.items()
            },
            "retrieval": {direction: found.as_dict() for direction, found in self.retrieval.items()},
        }


def compare_features(a: Named, b: Named, inputs: Inputs, worst: int = 5) -> Comparison:
    """Encodes everything with A, then with B, and compares.

    One of them is open at a time. Features are in temporary files; memory holds ids and a few numbers a row.

    Args:
        a: what is there, the reference.
        b: what is to take its place.
        inputs: what is encoded.
        worst: how many rows to name.

    Raises:
        BuildError: a side or a source can't be had, or nothing could be encoded by both.
    """
    with open_side(b):
        pass  # what is wrong with B is told in seconds, not after hours of A
    with tempfile.TemporaryDirectory(prefix="cnclip-compare-") as folder:
        facts_a, by_a = _encode_all(a, inputs, Path(folder), "a")
        facts_b, by_b = _encode_all(b, inputs, Path(folder), "b")
        absent = _absent_images(inputs, by_a["image"].ids) if "image" in by_a else 0
        common = {tower: _common(tower, by_a[tower], by_b[tower], Path(folder)) for tower in by_a}
        distances, retrieval = {}, {}
        if facts_a.embedding_size == facts_b.embedding_size:
            for tower, both in common.items():
                distances[tower] = measure_distances(both.a, both.b, both.ids, worst)
        if len(common) == len(TOWERS):
            answers = {"text-to-image": inputs.right_images, "image-to-text": inputs.right_texts}
            for direction, (asked, found) in _DIRECTIONS.items():
                queries, gallery = common[asked], common[found]
                retrieval[direction] = compare_retrieval(
                    nearest(queries.a, gallery.a),
                    nearest(queries.b, gallery.b),
                    queries.ids,
                    gallery.ids,
                    answers[direction],
                )
        return Comparison(
            facts_a,
            facts_b,
            {tower: len(both.ids) for tower, both in common.items()},
            {tower: both.left_out for tower, both in common.items()},
            distances,
            retrieval,
            absent,
        )


def _encode_all(named: Named, inputs: Inputs, folder: Path, letter: str) -> tuple[Facts, dict[Tower, Encoded]]:
    with open_side(named) as side:
        encoded: dict[Tower, Encoded] = {}
        for tower in TOWERS:
            if tower in inputs.sources:
                logger.info("Encoding %ss with %s", tower, named.name)
                encoded[tower] = encode_source(side, tower, inputs.sources[tower], folder / f"{letter}-{tower}")
        return side.facts, encoded


def _common(tower: Tower, a: Encoded, b: Encoded, folder: Path) -> Compared:
    """The items that both sides have.

    Raises:
        SettingError: the source gave A other items than B.
        BuildError: there are none.
    """
    if a.ids != b.ids:
        raise SettingError(f"the {tower}s changed while they were read: compare again when nothing writes to them")
    places, in_a, in_b = np.intersect1d(a.places, b.places, assume_unique=True, return_indices=True)
    reasons = {place: _reason(a.failures.get(place), b.failures.get(place)) for place in {*a.failures, *b.failures}}
    left_out = {a.ids[place]: reason for place, reason in sorted(reasons.items())}
    if not len(places):
        example = next(iter(left_out.items()), None)
        why = f"; of {example[0]}, {example[1]}" if example else ": there are none"
        raise BuildError(f"no {tower} could be encoded by both{why}")
    ids = [a.ids[place] for place in places.tolist()]
    ours = _taken(a, in_a, folder / f"a-{tower}-common")
    return Compared(ids, ours, _taken(b, in_b, folder / f"b-{tower}-common"), left_out)


def _reason(by_a: str | None, by_b: str | None) -> str:
    if by_a == by_b:
        return f"A and B: {by_a}"
    return " and ".join(f"{side}: {reason}" for side, reason in (("A", by_a), ("B", by_b)) if reason is not None)


def _absent_images(inputs: Inputs, ids: list[Id]) -> int:
    """How many of the images that pairs name are not among the images.

    Raises:
        SettingError: all of them.
    """
    named = set(inputs.right_texts or ())
    absent = named.difference(ids)
    if named and len(absent) == len(named):
        raise SettingError(
            f"--pairs names images such as {next(iter(inputs.right_texts or ()))!r}, and none of them is among the "
            f"images, whose ids are such as {ids[0]!r}: give --images so that ids are the same, as its folder itself"
        )
    return len(absent)


def _taken(side: Encoded, rows: npt.NDArray[np.intp], file: Path) -> npt.NDArray[np.float32]:
    """Some rows of a side's features; a file of their own unless they are all."""
    if len(rows) == len(side.features):
        return side.features
    taken = np.memmap(file, np.float32, "w+", shape=(len(rows), side.features.shape[1]))
    for start in range(0, len(rows), 8192):
        taken[start : start + 8192] = side.features[rows[start : start + 8192]]
    return taken
