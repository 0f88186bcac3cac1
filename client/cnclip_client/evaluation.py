"""Recall of retrieval, with the numbers of cn_clip's own evaluation scripts.

    from cnclip_client.evaluation import read_annotations, recall

    annotations = read_annotations("test_texts.jsonl")
    with Gallery(read_features("images.jsonl", "image")) as gallery:
        hits = search(read_features("texts.jsonl", "text"), gallery)
        print(recall(hits, annotations.images_of_text))

As `cn_clip/eval/evaluation.py` and `evaluation_tr.py` count: R@k is the share of annotated queries with at least one
right answer among the first k; a query without any right answer is a miss; queries that are not annotated do not count;
of a query that comes twice the last one counts. Mean recall is the mean of recall at 1, 5 and 10.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cnclip_client._exceptions import BadFile
from cnclip_client._texts import NO_UTF8
from cnclip_client._vocabulary import Direction, Id
from cnclip_client.features import Features
from cnclip_client.sources._item import parse_id

__all__ = [
    *("Annotations", "Prediction", "Recall"),
    *("annotated", "as_annotated", "read_annotations", "read_predictions", "recall"),
]

_DEEPEST = 10
_NAMED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """Which images are right for which texts.

    Attributes:
        texts: Text id -> the text.
        images_of_text: Text id -> the images that are right for it, maybe none.
        texts_of_image: Image id -> the texts that it is right for, one at least.
    """

    texts: Mapping[Id, str]
    images_of_text: Mapping[Id, Collection[Id]]
    texts_of_image: Mapping[Id, Collection[Id]]

    def answers(self, direction: Direction) -> Mapping[Id, Collection[Id]]:
        """Returns query -> what is right for it, for one direction."""
        return self.images_of_text if direction == "text-to-image" else self.texts_of_image


class Ranked(Protocol):
    """A query and what was found for it, the best first: a `Hits` or a `Prediction`."""

    @property
    def query(self) -> Id: ...

    @property
    def ids(self) -> tuple[Id, ...]: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """A line of a predictions file.

    Attributes:
        query: The id of the text, or of the image.
        ids: What was found for it, the best first.
    """

    query: Id
    ids: tuple[Id, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How well one direction of retrieval did; each figure a share from 0 to 1.

    Attributes:
        r1: Annotated queries whose first answer is right.
        r5: With a right one among the first 5.
        r10: With a right one among the first 10.
        mean_recall: The mean of the three.
        queries: Annotated queries.
        missing: Those of them for which nothing was searched; they count as misses.
    """

    r1: float
    r5: float
    r10: float
    mean_recall: float
    queries: int
    missing: int


def read_annotations(path: str | PathLike[str]) -> Annotations:
    """Reads texts and the images that are right for them.

    Args:
        path: JSON lines with `text_id`, `text` and `image_ids`, as MUGE's and cn_clip's `*_texts.jsonl`.

    Raises:
        BadFile: A line is not as it should be, or no text has any image.
        OSError: The file cannot be read.
    """
    texts: dict[Id, str] = {}
    images_of_text: dict[Id, Collection[Id]] = {}
    texts_of_image: dict[Id, list[Id]] = {}
    for number, item in _json_lines(path):
        if "text_id" not in item and "text_ids" in item:
            raise BadFile(
                f"line {number} is an image with its text_ids, as cn_clip's transform_ir_annotation_to_tr.py writes "
                "it; give the texts' own file, of which both directions are counted",
                path=str(path),
            )
        text = _field(path, number, item, "text_id", int | str)
        texts[text] = str(item.get("text", ""))
        images_of_text[text] = frozenset(_ids(path, number, item, "image_ids"))
        for image in item["image_ids"]:
            texts_of_image.setdefault(image, []).append(text)
    if not texts_of_image:
        raise BadFile("no text in it has an image that is right for it; give annotated texts", path=str(path))
    return Annotations(texts, images_of_text, texts_of_image)


def read_predictions(path: str | PathLike[str], direction: Direction) -> Iterator[Prediction]:
    """Yields what `cnclip search` or cn_clip's `make_topk_predictions.py` and `make_topk_predictions_tr.py` found.

    Args:
        path: JSON lines: `text_id` and `image_ids`, or for image-to-text `image_id` and `text_ids`.
        direction: Which of the two.

    Raises:
        BadFile: A line is not as it should be, names an id twice or has less than 10.
        OSError: The file cannot be read.
    """
    asked, found = direction.split("-to-")
    for number, item in _json_lines(path):
        query = _field(path, number, item, f"{asked}_id", int | str)
        ids = tuple(_ids(path, number, item, f"{found}_ids"))
        if len(set(ids)) < max(len(ids), _DEEPEST):
            raise BadFile(
                f"line {number} has {len(set(ids))} different {found}s; R@10 needs 10, each once "
                "(of a gallery of fewer, evaluate the features)",
                path=str(path),
            )
        yield Prediction(query, ids)


def as_annotated(one: Id, ids: Container[Id]) -> Id:
    """Returns an id as it is among some that were annotated.

    An integer and its digits are one there: parquet has the one for the other where not all ids are integers, and so
    have sources whose ids are text.
    """
    if one in ids:
        return one
    other = _other_form(one)
    return other if other in ids else one


def _other_form(one: Id) -> Id:
    return parse_id(one) if isinstance(one, str) else str(one)


def annotated(queries: Iterable[Features], answers: Mapping[Id, Collection[Id]]) -> Iterator[Features]:
    """Yields only those queries that have an entry in the answers, since only they count."""
    for block in queries:
        yield block[np.array([as_annotated(one, answers) in answers for one in block.ids.tolist()], dtype=np.bool_)]


def recall(
    found: Iterable[Ranked],
    answers: Mapping[Id, Collection[Id]],
    *,
    missing: Literal["error", "miss"] = "error",
) -> Recall:
    """Returns recall at 1, at 5 and at 10, and their mean.

    Args:
        found: The queries' hits or predictions, 10 of each (fewer where the gallery has no more).
        answers: Annotated query -> what is right for it, maybe nothing.
        missing: What an annotated query is that was not searched, such as an image that could not be decoded:
            an error, as in cn_clip's scripts, or a miss.

    Raises:
        ValueError: Nothing is annotated, or annotated queries are missing.
    """
    if not answers:
        raise ValueError("no query is annotated; give the annotations of these features")
    # By query, so that of one that comes twice the last one counts.
    ranks: dict[Id, int] = {}
    for one in found:
        query = as_annotated(one.query, answers)
        right = answers.get(query)
        if right is not None:
            # Of the few that are right, and not of all that were found: that took five times as long.
            known = {*right, *map(_other_form, right)}
            ranks[query] = next((rank for rank, each in enumerate(one.ids[:_DEEPEST]) if each in known), _DEEPEST)
    left_out = len(answers) - len(ranks)
    if left_out and missing == "error":
        named = ", ".join(islice((repr(query) for query in answers if query not in ranks), _NAMED))
        more = ", ..." if left_out > _NAMED else ""
        raise ValueError(
            f"{left_out} of {len(answers)} annotated queries were not searched ({named}{more}); extract them too, or "
            "count them as misses (missing='miss', --missing-as-misses)"
        )
    r1, r5, r10 = (sum(rank < k for rank in ranks.values()) / len(answers) for k in (1, 5, _DEEPEST))
    return Recall(r1=r1, r5=r5, r10=r10, mean_recall=(r1 + r5 + r10) / 3.0, queries=len(answers), missing=left_out)


def _json_lines(path: str | PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except UnicodeDecodeError as error:
                raise BadFile(f"line {number} {NO_UTF8}", path=str(path)) from error
            except (ValueError, RecursionError) as error:
                raise BadFile(f"line {number} is no JSON ({error}); mend or remove it", path=str(path)) from error
            if not isinstance(item, dict):
                raise BadFile(f"line {number} is no JSON object; mend or remove it", path=str(path))
            yield number, item


def _field(path: Any, number: int, item: dict[str, Any], name: str, kind: Any) -> Any:
    if name not in item:
        raise BadFile(f"line {number} has no {name} among {', '.join(item) or 'nothing'}", path=str(path))
    if not isinstance(item[name], kind) or isinstance(item[name], bool):
        raise BadFile(f"line {number}: {name} is {item[name]!r}; mend it", path=str(path))
    return item[name]


def _ids(path: Any, number: int, item: dict[str, Any], name: str) -> list[Id]:
    ids: list[Id] = _field(path, number, item, name, list)
    for one in ids:
        if not isinstance(one, int | str) or isinstance(one, bool):
            raise BadFile(f"line {number}: {name} holds {one!r}, neither integer nor string", path=str(path))
    return ids
