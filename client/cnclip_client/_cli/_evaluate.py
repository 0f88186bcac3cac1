"""`cnclip evaluate`: recall of retrieval."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from cnclip_console import option, print_table

from cnclip_client._cli._progress import stages
from cnclip_client._cli._retrieval import (
    ImageFeatures,
    IndexOption,
    IndexParameters,
    MemoryMib,
    Normalize,
    TextFeatures,
    asked_of_features,
    asked_of_index,
)
from cnclip_client._cli._shared import AsJson, write
from cnclip_client.command_line import Verbose, complain, reporting, usage
from cnclip_client.evaluation import Recall, annotated, read_annotations, read_predictions, recall
from cnclip_client.features import require_one_checkpoint
from cnclip_client.retrieval import Direction

__all__ = ["evaluate"]

Predictions = Annotated[
    Path | None, option("Predictions of this direction, instead of features.", metavar="FILE.jsonl")
]


def evaluate(
    annotations: Annotated[
        Path, option("Texts with text_id and the image_ids that are right for them.", metavar="FILE.jsonl")
    ],
    image_feats: Annotated[Path | None, ImageFeatures] = None,
    text_feats: Annotated[Path | None, TextFeatures] = None,
    index: IndexOption = None,
    text_to_image: Predictions = None,
    image_to_text: Predictions = None,
    missing_as_misses: Annotated[
        bool, option("Count annotated queries that were not searched as misses.", "--missing-as-misses")
    ] = False,
    index_parameters: IndexParameters = None,
    normalize: Normalize = False,
    memory_mib: MemoryMib = 1024,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    r"""Tell R@1, R@5, R@10 and mean recall in percent, counted as cn_clip's evaluation.py and evaluation_tr.py do.

    Give the features of both sides, or predictions of one direction or of both, or an index and the features
    that ask it.

    Example:
      cnclip evaluate --annotations test_texts.jsonl \
        --image-feats imgs.jsonl --text-feats texts.jsonl
    """
    predictions: dict[Direction, Path | None] = {"text-to-image": text_to_image, "image-to-text": image_to_text}
    features = (image_feats, text_feats)
    if any(features) == any(predictions.values()) or (not index and any(features) != all(features)):
        raise typer.BadParameter(
            "give --image-feats and --text-feats, or --text-to-image and/or --image-to-text, or --index and the "
            "features that ask it"
        )
    with reporting(verbose), usage():
        right = read_annotations(annotations)
        missing: Literal["error", "miss"] = "miss" if missing_as_misses else "error"
        found: dict[Direction, Recall] = {}
        with stages() as report:
            if index:
                opened = [asked_of_index(index, image_feats, text_feats, normalize, index_parameters, report)]
            elif image_feats and text_feats:
                require_one_checkpoint(image_feats, text_feats)
                sides = image_feats, text_feats, normalize, memory_mib, report
                opened = [asked_of_features(direction, *sides) for direction in predictions]
            else:
                opened = []
            for one in opened:
                with one as asked:
                    answers = right.answers(asked.direction)
                    hits = asked.hits(annotated(asked.queries, answers))
                    found[asked.direction] = recall(hits, answers, missing=missing)
        for direction, path in predictions.items():
            if path:
                found[direction] = recall(read_predictions(path, direction), right.answers(direction), missing=missing)
        for direction, figures in found.items():
            if figures.missing:
                complain(f"{direction}: {figures.missing} of {figures.queries} queries were not searched: misses")
        if as_json:
            write((json.dumps({name.replace("-", "_"): _percent(one) for name, one in found.items()}) + "\n").encode())
        else:
            _print(found)


def _percent(figures: Recall) -> dict[str, float | int]:
    shares = {name: 100 * getattr(figures, name) for name in ("r1", "r5", "r10", "mean_recall")}
    return {**dataclasses.asdict(figures), **shares}


def _print(found: Mapping[Direction, Recall]) -> None:
    rows = []
    for direction, one in found.items():
        shares = (one.r1, one.r5, one.r10, one.mean_recall)
        rows.append((direction, *(f"{100 * share:.2f}" for share in shares), f"{one.queries:,}"))
    print_table(("recall in %", "R@1", "R@5", "R@10", "mean recall", "queries"), rows)
