"""`cnclip search`: the best k images for each text, or texts for each image."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated

import typer
from cnclip_console import option

from cnclip_client._cli._pictures import pictures_in, queries_with_ids, words_in
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
from cnclip_client._cli._shared import require_unread, writing
from cnclip_client._extras import require
from cnclip_client._float32 import rounded
from cnclip_client.command_line import Verbose, reporting, usage
from cnclip_client.evaluation import read_annotations
from cnclip_client.features import require_one_checkpoint
from cnclip_client.report import html_report, image_ids, text_ids, thumbnails
from cnclip_client.retrieval import Direction, Hits
from cnclip_client.sources import Source, image_source, text_source

__all__ = ["search"]


def search(
    image_feats: Annotated[Path | None, ImageFeatures] = None,
    text_feats: Annotated[Path | None, TextFeatures] = None,
    index: IndexOption = None,
    image_to_text: Annotated[
        bool, option("Texts for images, or images for texts.", "--image-to-text/--text-to-image")
    ] = False,
    top_k: Annotated[int, option("How many to find for each.", min=1)] = 10,
    output: Annotated[str, option("The predictions; - is stdout.", "--output", "-o", metavar="FILE.jsonl|-")] = "-",
    scores: Annotated[bool, option("Add each one's score.", "--scores")] = False,
    html: Annotated[
        Path | None, option("Write a page to look at: thumbnails, scores, what is right.", metavar="FILE.html")
    ] = None,
    html_queries: Annotated[int, option("The first so many queries are on the page.", min=1)] = 100,
    images: Annotated[
        str | None, option("The page's images: whatever `extract images` takes.", metavar="SOURCE")
    ] = None,
    texts: Annotated[str | None, option("The page's texts: whatever `extract texts` takes.", metavar="SOURCE")] = None,
    annotations: Annotated[
        Path | None, option("The page's texts, and the image_ids right for them.", metavar="FILE.jsonl")
    ] = None,
    index_parameters: IndexParameters = None,
    normalize: Normalize = False,
    memory_mib: MemoryMib = 1024,
    verbose: Verbose = False,
) -> None:
    r"""Find the best images for each text, or the best texts for each image, among extracted features.

    Exact, unless an --index takes the place of the features that are searched; of equal scores the earlier in the file
    is the better. Prints JSON lines as cn_clip's
    make_topk_predictions.py and make_topk_predictions_tr.py do: {"text_id": ..., "image_ids": [...]}.

    Examples:
      cnclip search --image-feats imgs.jsonl --text-feats texts.jsonl -o found.jsonl
      cnclip search --image-feats imgs.jsonl --text-feats texts.jsonl \
        -o found.jsonl --html found.html --images photos/
    """
    if html is None and (images or texts or annotations):
        raise typer.BadParameter("--images, --texts and --annotations are for the page; name it with --html")
    with reporting(verbose), usage(), ExitStack() as outputs:
        # A folder of images may hold the page that shows them.
        listed = [source for source in (images, texts) if source and not Path(source).is_dir()]
        for place in (output, str(html or "-")):
            require_unread(place, [image_feats, text_feats, index, annotations, *listed])
        if html is not None and output != "-" and Path(output).resolve() == html.resolve():
            raise typer.BadParameter(f"--output and --html are both {html}: name another file for one of them")
        page = None
        if html is not None:  # before minutes of searching
            page = _Page(outputs.enter_context(writing(str(html))), images, texts, annotations, html_queries)
        report = outputs.enter_context(stages(output))
        if index:
            opened = asked_of_index(index, image_feats, text_feats, normalize, index_parameters, report)
        elif image_feats and text_feats:
            require_one_checkpoint(image_feats, text_feats)
            wanted: Direction = "image-to-text" if image_to_text else "text-to-image"
            opened = asked_of_features(wanted, image_feats, text_feats, normalize, memory_mib, report)
        else:
            raise typer.BadParameter("give --image-feats and --text-feats, or --index and the features that ask it")
        with opened as asked:
            if image_to_text and asked.direction != "image-to-text":
                raise typer.BadParameter(f"{index} is an index of images; leave out --image-to-text")
            with writing(output) as file:
                for hits in asked.hits(queries_with_ids(asked, page.sources if page else ()), k=top_k):
                    file.write(_line(hits, asked.direction, scores))
                    if page:
                        page.add(hits)
            searched = len(asked.searched)
        if page:
            page.write(asked.direction, searched, by_index=index is not None)


class _Page:
    """The page to look at, of the first queries; what it shows of them is opened when it is made."""

    def __init__(
        self, file: IO[str], images: str | None, texts: str | None, annotations: Path | None, most: int
    ) -> None:
        for module in ("jinja2", "PIL.Image"):
            require(module, extra="report")
        self._file = file
        self._pictures = image_source(images) if images else None
        self._words = text_source(texts) if texts else None
        self._annotations = read_annotations(annotations) if annotations else None
        self._most = most
        self._shown: list[Hits] = []
        self._queries = 0

    @property
    def sources(self) -> list[Source]:
        """The images and texts to show, where they are given."""
        return [source for source in (self._pictures, self._words) if source]

    def add(self, hits: Hits) -> None:
        """Takes what a query found."""
        self._queries += 1
        if self._queries <= self._most:
            self._shown.append(hits)

    def write(self, direction: Direction, searched: int, *, by_index: bool) -> None:
        """Writes the page: reads the pictures and texts of what was found."""
        images, texts = (ids(self._shown, direction, self._annotations) for ids in (image_ids, text_ids))
        self._file.write(
            html_report(
                self._shown,
                direction,
                annotations=self._annotations,
                texts=dict(words_in(self._words, texts)) if self._words else {},
                pictures=thumbnails(pictures_in(self._pictures, images), images) if self._pictures else None,
                queries=self._queries,
                searched=searched,
                by_index=by_index,
            )
        )


def _line(hits: Hits, direction: Direction, scores: bool) -> str:
    asked, found = direction.split("-to-")
    line: dict[str, object] = {f"{asked}_id": hits.query, f"{found}_ids": hits.ids}
    if scores:
        line["scores"] = rounded(hits.scores)
    return json.dumps(line) + "\n"
