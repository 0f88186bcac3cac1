"""The command that compares the features of two models on a user's own images and texts."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, Arch, get_arch
from cnclip_builder.cli.options import (
    DEFAULT_DOWNLOAD_ROOT,
    DownloadRootOption,
    HubOption,
    VerboseOption,
    VocabularyOption,
)
from cnclip_builder.system.atomic import replacing_file

if TYPE_CHECKING:
    from cnclip_builder.comparison.compare import Comparison

_LEFT_OUT_SHOWN = 5
_WIDTH = 80  # where the output is no terminal


def compare_features(
    a: Annotated[
        str,
        typer.Argument(
            help="What is there: a checkpoint (a file, random:SEED, official), ONNX files with their precision "
            "(FOLDER:fp16), a model repository (FOLDER, FOLDER#MODEL), or a server (HOST:PORT, HOST:PORT/MODEL)."
        ),
    ],
    b: Annotated[str, typer.Argument(help="What is to take its place; the same choice.")],
    images: Annotated[
        Optional[str],  # noqa: UP045  # Typer reads it at run time, on Python 3.10 too
        typer.Option(help="A folder, a glob, a list, a TSV, an LMDB or parquet of images.", show_default=False),
    ] = None,
    texts: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Texts: JSONL, a text a line, or parquet.", show_default=False),
    ] = None,
    pairs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Texts and the images that belong to them: JSONL with image_ids, or lines of an image's file, a tab "
            "and its caption.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of checkpoints: RN50, ViT-B-16 and so on, or a .json file.", show_default=False),
    ] = None,
    arch_b: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of checkpoint B, if it is another than A's.", show_default=False),
    ] = None,
    vocabulary: VocabularyOption = None,
    context_length: Annotated[
        int, typer.Option(help="Tokens of a text that checkpoints and ONNX files read; a server has its own.")
    ] = DEFAULT_CONTEXT_LENGTH,
    worst: Annotated[int, typer.Option(min=0, help="How many of the rows that are furthest apart to name.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Write all figures as JSON instead of the table.")] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a page with plots here too.", dir_okay=False, show_default=False),
    ] = None,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = "huggingface",
    verbose: VerboseOption = False,
) -> None:
    """Compare the features of two models on your own images and texts, before one takes the other's place."""
    from cnclip_builder.comparison.compare import compare_features as compare
    from cnclip_builder.comparison.inputs import open_inputs
    from cnclip_builder.comparison.page import comparison_page
    from cnclip_builder.comparison.sides import Named

    logging.getLogger("cnclip_builder").setLevel(logging.INFO if sys.stderr.isatty() or verbose else logging.WARNING)
    inputs = open_inputs(images, texts, pairs)
    chosen = [_chosen_arch(one, vocabulary) for one in (arch, arch_b or arch)]
    sides = [
        Named(name, one, context_length, download_root, hub, vocabulary)
        for name, one in zip((a, b), chosen, strict=True)
    ]
    comparison = compare(sides[0], sides[1], inputs, worst)
    if html is not None:
        with replacing_file(html) as partial:
            partial.write_text(comparison_page(comparison), encoding="utf-8", errors="surrogateescape")
    if as_json:
        typer.echo(json.dumps(comparison.as_dict(), indent=2))
    else:
        _show(comparison)


def _chosen_arch(name: str | None, vocabulary: Path | None) -> Arch | None:
    return None if name is None else get_arch(name, vocabulary)


def _show(comparison: Comparison) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    sides = _table("", "named", "arch", "precision", "checkpoint")
    for letter, facts in (("A", comparison.a), ("B", comparison.b)):
        sides.add_row(
            letter, _shown(facts.name), _shown(facts.arch), facts.precision or "?", f"{facts.checkpoint_sha256[:12]}…"
        )
    console.print(sides)
    if comparison.distances:
        console.print(_distances(comparison))
    for tower, distances in comparison.distances.items():
        if distances.worst:
            furthest = _table(f"{tower}s furthest apart", _right("1 - cosine"), _right("centred"))
            for row in distances.worst:
                furthest.add_row(_shown(row.id), f"{row.cosine_distance:.1e}", f"{row.centred_distance:.1e}")
            console.print(furthest)
    if comparison.retrieval:
        console.print(_retrieval(comparison))
    for tower, left_out in comparison.left_out.items():
        if left_out:
            console.print(f"{len(left_out)} {tower}s were left out of both:")
            for one, reason in list(left_out.items())[:_LEFT_OUT_SHOWN]:
                console.print(Text.assemble("  ", _shown(one), f": {reason}"))
            if len(left_out) > _LEFT_OUT_SHOWN:
                console.print(f"  and {len(left_out) - _LEFT_OUT_SHOWN} more (--json names all)")
    for note in comparison.notes:
        console.print(note, markup=False)


def _distances(comparison: Comparison) -> Table:
    from cnclip_builder.comparison.distances import QUANTILES, quantiles

    table = _table("1 - cosine", _right("rows"), *map(_right, QUANTILES))
    for tower, distances in comparison.distances.items():
        kinds = {f"{tower}s": distances.cosine, "  centred": distances.centred}
        for label, values in kinds.items():
            if values is not None:
                table.add_row(label, f"{len(values):,}", *(f"{value:.1e}" for value in quantiles(values).values()))
    return table


def _retrieval(comparison: Comparison) -> Table:
    shares = ("R@1", "R@5", "R@10", "queries", "same 1st", "same 10")
    table = _table(Column("retrieval", no_wrap=True), "", *map(_right, shares))
    for direction, found in comparison.retrieval.items():
        same = [f"{found.queries:,}", f"{found.same_first:.1%}", f"{found.overlap:.1%}"]
        if found.recall_a is None or found.recall_b is None:
            table.add_row(direction, "", "", "", "", *same)
            continue
        for letter, recall in (("A", found.recall_a), ("B", found.recall_b)):
            first = letter == "A"
            found_right = (f"{share:.1%}" for share in (recall.r1, recall.r5, recall.r10))
            table.add_row(direction if first else "", letter, *found_right, *(same if first else ()))
    return table


def _table(*columns: str | Column) -> Table:
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False)


def _right(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


def _shown(name: object) -> Text:
    """An id or a name as a terminal takes it: no markup, and bytes that are no UTF-8 written out."""
    return Text(str(name).encode("utf-8", "backslashreplace").decode(), overflow="fold")
