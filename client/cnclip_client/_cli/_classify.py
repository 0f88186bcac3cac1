"""`cnclip classify`: which of some labels each image shows."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from cnclip_client._cli import _render as render
from cnclip_client._cli._connection import Server, asks_server
from cnclip_client._cli._shared import SOME_FAILED, Verbose, complain, items_given, reporting, usage, writing
from cnclip_client._float32 import rounded
from cnclip_client.classification import TEMPLATES, Classification, Classifier

__all__ = ["classify"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@asks_server
def classify(
    server: Server,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Image files, or folders of them.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A label a line, such as cn_clip's label_cn.txt.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label; may be given many times.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A prompt with {} for the label; may be given many times.", show_default=TEMPLATES[0]),
    ] = None,
    templates: Annotated[Path | None, typer.Option(metavar="FILE", help="A template a line.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with a path a line; - is standard input.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels to name for each image.")] = 5,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE.jsonl|-", help="JSON lines; - is stdout.")
    ] = "-",
    verbose: Verbose = False,
) -> None:
    """Tell what each image shows, of labels that the model never learned.

    A line for each image: {"image": PATH, "labels": [...], "probabilities": [...]}, the likeliest first; probabilities
    are among all labels.

    Example: cnclip classify photos/ --label 猫 --label 狗 --template '一张{}的照片' --template '{}的特写照片'
    """
    with reporting(verbose), usage():
        if not paths and not file:
            raise typer.BadParameter("name image files or folders, or a list of them with --file")
        named = _lines(labels, label, "--label")
        prompts = _lines(templates, template, "--template") or list(TEMPLATES)
        if not named:
            raise typer.BadParameter("name labels with --label, or a file of them with --labels")
        some_failed = False
        shown = sys.stderr.isatty() and (output != "-" or not sys.stdout.isatty())
        with server.connect() as client, render.progress(shown, None) as advance, writing(output) as out:
            classifier = Classifier.of(client, named, templates=prompts)
            pending: deque[str] = deque()
            images = _images(items_given(paths, file), pending)
            for found in classifier.classify(client, images, k=top_k):
                name = pending.popleft()
                if found.failure:
                    some_failed = True
                    complain(f"{name}: {found.failure}")
                else:
                    out.write(_line(name, found))
                advance(1)
    if some_failed:
        raise typer.Exit(SOME_FAILED)


def _lines(file: Path | None, given: list[str] | None, option: str) -> list[str]:
    """Returns the lines of a file, or what was given one by one; blank lines at its end are left out."""
    if file is None:
        return given or []
    if given:
        raise typer.BadParameter(f"give {option} or {option}s, not both")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file} is not UTF-8 ({error.reason}); convert it") from error
    if "" in lines:
        raise typer.BadParameter(f"{file}: line {lines.index('') + 1} is blank; fill or remove it")
    return lines


def _images(given: Iterable[str], pending: deque[str]) -> Iterator[str]:
    """Yields the files, and the image files in folders; remembers their names for when the answers come."""
    for path in given:
        if Path(path).is_dir():
            inside = sorted(one for one in Path(path).rglob("*") if one.suffix.lower() in _SUFFIXES and one.is_file())
            names = [str(one) for one in inside]
        else:
            names = [path]
        for name in names:
            pending.append(name)
            yield name


def _line(name: str, found: Classification) -> str:
    line = {"image": name, "labels": found.labels, "probabilities": rounded(found.probabilities)}
    return json.dumps(line, ensure_ascii=False) + "\n"
