"""`cnclip classify`: which of some labels each image shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from cnclip_console import option

from cnclip_client._cli import _render as render
from cnclip_client._cli._progress import has_room, progress
from cnclip_client._cli._shared import as_typed, items_given, require_unread, writing
from cnclip_client._float32 import rounded
from cnclip_client._texts import NO_UTF8
from cnclip_client._vocabulary import Id
from cnclip_client.classification import TEMPLATES, Classification, Classifier
from cnclip_client.command_line import SOME_FAILED, Server, Verbose, asks_server_for, complain, reporting, usage
from cnclip_client.sources import image_source

__all__ = ["classify"]


@asks_server_for("images", "texts", "files")
def classify(
    server: Server,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Image files, or folders of them.", show_default=False)
    ] = None,
    labels: Annotated[Path | None, option("A label a line, such as cn_clip's label_cn.txt.", metavar="FILE")] = None,
    label: Annotated[list[str] | None, option("A label; may be given many times.")] = None,
    template: Annotated[
        list[str] | None, option("A prompt with {} for the label; may be given many times.", show_default=TEMPLATES[0])
    ] = None,
    templates: Annotated[Path | None, option("A template a line.", metavar="FILE")] = None,
    file: Annotated[str | None, option("A file with a path a line; - is standard input.", "--file", "-f")] = None,
    top_k: Annotated[int, option("How many labels to name for each image.", min=1)] = 5,
    output: Annotated[str, option("JSON lines; - is stdout.", "--output", "-o", metavar="FILE.jsonl|-")] = "-",
    verbose: Verbose = False,
) -> None:
    r"""Tell what each image shows, of labels that the model never learned.

    A line for each image: {"image": PATH, "labels": [...], "probabilities": [...]}, the likeliest first; probabilities
    are among all labels. Of a folder it takes what `cnclip extract images` does: every file that is not hidden counts.

    Example:
      cnclip classify photos/ --label 猫 --label 狗 \
        --template '一张{}的照片' --template '{}的特写照片'
    """
    with reporting(verbose), usage():
        if not paths and not file:
            raise typer.BadParameter("name image files or folders, or a list of them with --file")
        named = _lines(labels, label, "--label")
        require_unread(output, [labels, templates, file, *(paths or ())])
        prompts = _lines(templates, template, "--template") or list(TEMPLATES)
        if not named:
            raise typer.BadParameter("name labels with --label, or a file of them with --labels")
        failures = 0
        with server.connect() as client, progress(has_room(output), lambda: None) as report, writing(output) as out:
            report(0, 0)
            classifier = Classifier.of(client, named, templates=prompts)
            pending: deque[tuple[Id, str]] = deque()
            images = _images(items_given(paths, file), pending, server.item_bytes)
            for done, found in enumerate(classifier.classify(client, images, k=top_k), start=1):
                name, failure = pending.popleft()
                if found.failure:
                    failures += 1
                    complain(f"{name}: {failure or found.failure}")
                else:
                    out.write(_line(name, found))
                report(done, failures)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _lines(file: Path | None, given: list[str] | None, option: str) -> list[str]:
    """Returns the lines of a file, or what was given one by one; blank lines at its end are left out."""
    if file is None:
        return as_typed(given or ())
    if given:
        raise typer.BadParameter(f"give {option} or {option}s, not both")
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file} {NO_UTF8}") from error
    lines = [line.strip() for line in text.split("\n")] if text else []
    if "" in lines:
        raise typer.BadParameter(f"{file}: line {lines.index('') + 1} is blank; fill or remove it")
    return lines


def _images(given: Iterable[str], pending: deque[tuple[Id, str]], item_bytes: int) -> Iterator[Any]:
    """Yields the files, and the images in folders.

    Args:
        given: Paths.
        pending: Is given, for when the answers come, each one's path, or its id where it has no file of its own, and
            why it cannot be had.
        item_bytes: The largest image taken.
    """
    for path in given:
        if not Path(path).is_dir():
            pending.append((path, ""))
            yield path
            continue
        source = image_source(path, item_bytes=item_bytes)
        are_files = source.fingerprint["format"] == "folder"
        for item in source.items():
            pending.append((str(Path(path, str(item.id))) if are_files else item.id, item.failure))
            # None is what no client takes: the item fails in its place, for the reason that is kept.
            yield None if item.failure else item.value


def _line(name: Id, found: Classification) -> str:
    line = {"image": name, "labels": found.labels, "probabilities": rounded(found.probabilities)}
    return render.harmless_json(line) + "\n"
