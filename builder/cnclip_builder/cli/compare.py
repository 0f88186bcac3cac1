"""The command that compares the features of two models on a user's own images and texts."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cnclip_console import option, print_table, visible

from cnclip_builder.cli.options import (
    DEFAULT_DOWNLOAD_ROOT,
    DownloadRootOption,
    HubOption,
    VerboseOption,
    VocabularyOption,
)
from cnclip_builder.errors import SettingError
from cnclip_builder.system.atomic import replacing_file, require_writable

if TYPE_CHECKING:
    from cnclip_builder.comparison.compare import Comparison
    from cnclip_builder.comparison.distances import Distances
    from cnclip_builder.comparison.retrieval import Retrieval
    from cnclip_builder.tensors import Tower

_LEFT_OUT_SHOWN = 5
_WIDTH = 80


def compare_features(
    a: Annotated[
        str,
        typer.Argument(
            help="What is there: a checkpoint (file, folder of transformers, hf:OWNER/NAME, random:SEED or official), "
            "ONNX files with their precision (FOLDER:fp16), a model repository (FOLDER, FOLDER#MODEL), or a server "
            "(HOST:PORT, HOST:PORT/MODEL)."
        ),
    ],
    b: Annotated[str, typer.Argument(help="What is to take its place; the same choice.")],
    images: Annotated[str | None, option("A folder, a glob, a list, a TSV, an LMDB or parquet of images.")] = None,
    texts: Annotated[str | None, option("Texts: JSONL, a text a line, or parquet.")] = None,
    pairs: Annotated[
        Path | None,
        option(
            "Texts and the images that belong to them: JSONL with image_ids, or lines of an image's file, a tab "
            "and its caption.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    arch: Annotated[
        str | None,
        option("Of checkpoints: RN50, ViT-B-16 and so on, or a .json file. Default: what their tensors tell."),
    ] = None,
    arch_b: Annotated[str | None, option("Of checkpoint B, if it is another than A's.")] = None,
    vocabulary: VocabularyOption = None,
    context_length: Annotated[
        int | None,
        option(
            "Tokens of a text that checkpoints and ONNX files read; a server has its own. Default: 52, or what "
            "the model has room for."
        ),
    ] = None,
    worst: Annotated[int, option("How many of the rows that are furthest apart to name.", min=0)] = 5,
    as_json: Annotated[bool, option("Write all figures as JSON instead of the table.", "--json")] = False,
    html: Annotated[Path | None, option("Write a page with plots here too.", dir_okay=False)] = None,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = "huggingface",
    verbose: VerboseOption = False,
) -> None:
    """Compare the features of two models on your own images and texts, before one takes the other's place.

    Example:
      cnclip-build compare-features old.pt new.pt --arch ViT-B-16 --images photos/
    """
    from cnclip_builder.comparison.compare import compare_features as compare
    from cnclip_builder.comparison.inputs import open_inputs
    from cnclip_builder.comparison.page import comparison_page
    from cnclip_builder.comparison.sides import Named

    logging.getLogger("cnclip_builder").setLevel(logging.INFO if sys.stderr.isatty() or verbose else logging.WARNING)
    if html is not None:
        read = [Path(one) for one in (a, b, images, texts, pairs, vocabulary, arch, arch_b) if one]
        if any(path.is_file() and path.resolve() == html.resolve() for path in read):
            raise SettingError(f"--html {html} would take the place of what is read: name another file")
        require_writable(html)  # before minutes of encoding
    inputs = open_inputs(images, texts, pairs)
    archs = (arch, arch_b or arch)
    sides = [
        Named(name, one, context_length, download_root, hub, vocabulary)
        for name, one in zip((a, b), archs, strict=True)
    ]
    comparison = compare(sides[0], sides[1], inputs, worst)
    if html is not None:
        with replacing_file(html) as partial:
            partial.write_text(comparison_page(comparison), encoding="utf-8", errors="backslashreplace")
    if as_json:
        typer.echo(json.dumps(comparison.as_dict(), indent=2))
    else:
        _show(comparison)


def _show(comparison: Comparison) -> None:
    sides = [
        (letter, facts.name, facts.arch, facts.precision, facts.checkpoint_sha256[:12])
        for letter, facts in (("A", comparison.a), ("B", comparison.b))
    ]
    print_table(("", "named", "arch", "precision", "checkpoint"), sides)
    if comparison.distances:
        _show_distances(comparison.distances)
    if comparison.retrieval:
        _show_retrieval(comparison.retrieval)
    for tower, left_out in comparison.left_out.items():
        if left_out:
            typer.echo(f"\n{len(left_out)} {tower}s were left out of both:")
            for one, reason in list(left_out.items())[:_LEFT_OUT_SHOWN]:
                typer.echo(visible(f"  {one}: {reason}"))
            if len(left_out) > _LEFT_OUT_SHOWN:
                typer.echo(f"  and {len(left_out) - _LEFT_OUT_SHOWN} more (--json names all)")
    for note in comparison.notes:
        typer.echo("\n" + "\n".join(textwrap.wrap(str(note), _WIDTH)))


def _show_distances(found: Mapping[Tower, Distances]) -> None:
    from cnclip_builder.comparison.distances import QUANTILES, quantiles

    rows = [
        (label, str(len(values)), *(f"{value:.1e}" for value in quantiles(values).values()))
        for tower, distances in found.items()
        for label, values in ((f"{tower}s", distances.cosine), ("  centred", distances.centred))
        if values is not None
    ]
    typer.echo()
    print_table(("1 - cosine", "rows", *QUANTILES), rows)
    for tower, distances in found.items():
        if distances.worst:
            typer.echo()
            furthest = [
                (str(row.id), f"{row.cosine_distance:.1e}", f"{row.centred_distance:.1e}") for row in distances.worst
            ]
            print_table((f"{tower}s furthest apart", "1 - cosine", "centred"), furthest)


def _show_retrieval(found: Mapping[str, Retrieval]) -> None:
    rows: list[tuple[str, ...]] = []
    for direction, one in found.items():
        same = (str(one.queries), f"{one.same_first:.1%}", f"{one.overlap:.1%}")
        if one.recall_a is None or one.recall_b is None:
            rows.append((direction, "", "", "", "", *same))
            continue
        for letter, recall in (("A", one.recall_a), ("B", one.recall_b)):
            shares = (f"{share:.1%}" for share in (recall.r1, recall.r5, recall.r10))
            rows.append(
                (direction, letter, *shares, *same) if letter == "A" else ("", letter, *shares, *("" for _ in same))
            )
    typer.echo()
    print_table(("retrieval", "", "R@1", "R@5", "R@10", "queries", "same 1st", "same 10"), rows)
