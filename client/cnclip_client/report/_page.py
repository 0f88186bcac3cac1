"""The page: what was found for each query, and what should have been."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from cnclip_client._extras import require
from cnclip_client._vocabulary import Direction, Id
from cnclip_client.evaluation import Annotations, as_annotated
from cnclip_client.report._thumbnails import Thumbnail
from cnclip_client.retrieval import Hits

__all__ = ["html_report", "image_ids", "text_ids"]

_MISSED_SHOWN = 5
_NOT_FOUND = Thumbnail(reason="not among the images")


@dataclass(frozen=True, slots=True)
class _Answer:
    """One of the things found for a query, or one that should have been; `right` is None where nobody knows."""

    id: Id
    text: str
    thumbnail: Thumbnail | None
    score: float | None
    right: bool | None


@dataclass(frozen=True, slots=True)
class _Query:
    """A query and what was found; `first_right` is the rank of the first right answer, from 1."""

    id: Id
    text: str
    thumbnail: Thumbnail | None
    answers: list[_Answer]
    missed: list[_Answer]
    more_missed: int
    annotated: bool
    first_right: int | None


def image_ids(hits: Iterable[Hits], direction: Direction, annotations: Annotations | None = None) -> set[Id]:
    """Returns the ids of all images that a report of these hits shows."""
    return _queries(hits) if direction == "image-to-text" else _answers(hits, direction, annotations)


def text_ids(hits: Iterable[Hits], direction: Direction, annotations: Annotations | None = None) -> set[Id]:
    """Returns the ids of all texts that a report of these hits shows."""
    return _queries(hits) if direction == "text-to-image" else _answers(hits, direction, annotations)


def _queries(hits: Iterable[Hits]) -> set[Id]:
    return {one.query for one in hits}


def _answers(hits: Iterable[Hits], direction: Direction, annotations: Annotations | None) -> set[Id]:
    found: set[Id] = set()
    for one in hits:
        found.update(one.ids)
        if annotations:
            found.update(_missed(one, _right(one, annotations, direction))[:_MISSED_SHOWN])
    return found


def html_report(
    hits: Sequence[Hits],
    direction: Direction,
    *,
    annotations: Annotations | None = None,
    texts: Mapping[Id, str] | None = None,
    pictures: Mapping[Id, Thumbnail] | None = None,
    queries: int | None = None,
    searched: int | None = None,
    by_index: bool = False,
) -> str:
    """Returns the page, which shows its reader's language, Chinese or English.

    What of an id or a text is no Unicode, as in a path of other bytes, is escaped.

    Args:
        hits: What to show; a page of hundreds of queries is heavy, so choose.
        direction: Which way was searched.
        annotations: The texts, and which answers are right.
        texts: Text id -> the text, of those that the annotations do not have.
        pictures: Image id -> its thumbnail; without them no image has a place for one.
        queries: How many queries there were, those that are not shown included.
        searched: How many images or texts were searched.
        by_index: Whether an index was searched in their place.

    Raises:
        MissingExtra: Jinja is not installed.
    """
    jinja2 = require("jinja2", extra="report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = resources.files("cnclip_client.report")
    template = environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))
    words = {**(texts or {}), **(annotations.texts if annotations else {})}
    shown = [_query(one, direction, annotations, words, pictures) for one in hits]
    page: str = template.render(
        chinese=json.loads(folder.joinpath("words.json").read_text(encoding="utf-8")),
        direction=direction,
        queries=shown,
        total=len(shown) if queries is None else queries,
        searched=searched,
        by_index=by_index,
        top_k=max((len(one.answers) for one in shown), default=0),
        annotated=[one for one in shown if one.annotated],
    )
    return page.encode("utf-8", "backslashreplace").decode()


def _query(
    one: Hits,
    direction: Direction,
    annotations: Annotations | None,
    texts: Mapping[Id, str],
    pictures: Mapping[Id, Thumbnail] | None,
) -> _Query:
    images_found = direction == "text-to-image"
    right = _right(one, annotations, direction) if annotations else ()

    def thumbnail(each: Id) -> Thumbnail | None:
        return None if pictures is None else pictures.get(each, _NOT_FOUND)

    def answer(each: Id, score: float | None) -> _Answer:
        known = as_annotated(each, right) in right if right else None
        if images_found:
            return _Answer(each, "", thumbnail(each), score, known)
        return _Answer(each, texts.get(as_annotated(each, texts), ""), None, score, known)

    missed = _missed(one, right)
    return _Query(
        id=one.query,
        text=texts.get(as_annotated(one.query, texts), "") if images_found else "",
        thumbnail=None if images_found else thumbnail(one.query),
        answers=[answer(each, score) for each, score in zip(one.ids, one.scores.tolist(), strict=True)],
        missed=[answer(each, None) for each in missed[:_MISSED_SHOWN]],
        more_missed=max(0, len(missed) - _MISSED_SHOWN),
        annotated=bool(right),
        first_right=next(
            (rank for rank, each in enumerate(one.ids, start=1) if as_annotated(each, right) in right), None
        ),
    )


def _right(one: Hits, annotations: Annotations, direction: Direction) -> Collection[Id]:
    answers = annotations.answers(direction)
    return answers.get(as_annotated(one.query, answers), ())


def _missed(one: Hits, right: Collection[Id]) -> list[Id]:
    # Sorted, as a set's order changes from run to run.
    return sorted(set(right).difference(as_annotated(each, right) for each in one.ids), key=str)
