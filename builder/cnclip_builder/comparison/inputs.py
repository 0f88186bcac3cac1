"""What two models are compared on: images, texts, and which of them belong together."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cnclip_client import CnclipError
from cnclip_client.evaluation import read_annotations
from cnclip_client.sources import Item, image_source, text_source

from cnclip_builder.errors import BuildError, SettingError
from cnclip_builder.tensors import Tower

Id = int | str

_COLUMNS = ("file", "caption")


class Source(Protocol):
    """What a client's source and `Listed` have in common."""

    def items(self) -> Iterator[Item]:
        """Gives the items, the same and in the same order whenever it is asked."""


@dataclass(frozen=True)
class Listed:
    """Items that are in memory, or the paths of whose files are.

    Attributes:
        listed: the items.
    """

    listed: tuple[Item, ...]

    def items(self) -> Iterator[Item]:
        """Gives them, in their order."""
        return iter(self.listed)


@dataclass(frozen=True)
class Inputs:
    """What is encoded.

    Attributes:
        sources: of images, of texts, or of both: see `Source`.
        right_images: by text, the images that belong to it; None if nothing tells.
        right_texts: by image, the texts that belong to it.
    """

    sources: Mapping[Tower, Source]
    right_images: Mapping[Id, Collection[Id]] | None = None
    right_texts: Mapping[Id, Collection[Id]] | None = None


@contextlib.contextmanager
def clients_errors() -> Iterator[None]:
    """Turns the client's errors into the builder's, with their message.

    Raises:
        BuildError: a file can't be used, or a server could not be had.
    """
    try:
        yield
    except CnclipError as error:
        raise BuildError(str(error)) from error


def open_inputs(images: str | None, texts: str | None, pairs: Path | None) -> Inputs:
    """Opens what is named; nothing of it but pairs and annotations is read into memory.

    Args:
        images: a folder, a glob, a list of paths, a MUGE TSV, an LMDB or parquet, as the client's jobs take them.
        texts: MUGE JSONL, a text a line, or parquet. With `image_ids` in JSONL, pairs are known as well.
        pairs: texts with the images that belong to them, in place of `texts`: MUGE JSONL with `image_ids`, or a
            TSV of an image's file and its caption in each line, whose files lie beside it or in its folder `images`.

    Raises:
        SettingError: nothing is named, or what does not go together.
        BuildError: a file is not what it should be.
    """
    if pairs is not None and texts is not None:
        raise SettingError("--pairs holds texts already: leave out --texts")
    if not (images or texts or pairs):
        raise SettingError("there is nothing to compare on: give --images, --texts or --pairs")
    if pairs is not None and pairs.suffix.lower() != ".jsonl":
        return _read_tsv(pairs, images)
    if pairs is not None and not images:
        raise SettingError(f"{pairs} names images by their ids: give them with --images")
    with clients_errors():
        sources: dict[Tower, Source] = {}
        if images:
            sources["image"] = image_source(images)
        if texts or pairs:
            sources["text"] = text_source(str(texts or pairs))
        if pairs is None:
            return Inputs(sources)
        annotations = read_annotations(pairs)
    return Inputs(sources, annotations.images_of_text, annotations.texts_of_image)


def _read_tsv(pairs: Path, images: str | None) -> Inputs:
    """Reads a TSV such as `examples/demo/captions.tsv`; texts are named by their line, images as they stand there.

    Raises:
        SettingError: a line is no pair, or an image's file is nowhere and no `images` hold it.
    """
    try:
        # A caption may hold what splitlines() takes for an end.
        lines = pairs.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SettingError(
            f"{pairs} is not in UTF-8 ({error.reason} at byte {error.start}): save it in UTF-8"
        ) from error
    texts: list[Item] = []
    files: dict[Id, Path] = {}
    right_images: dict[Id, list[Id]] = {}
    right_texts: dict[Id, list[Id]] = {}
    for number, line in enumerate(lines, start=1):
        name, tab, caption = line.partition("\t")
        if not line.strip() or (number == 1 and (name, caption) == _COLUMNS):
            continue
        found = next((path for path in (pairs.parent / name, pairs.parent / "images" / name) if path.is_file()), None)
        if not (tab and name and caption) or (found is None and not images):
            raise SettingError(
                f"{pairs}, line {number}: write an image's file, a tab and its caption; files lie beside the TSV or in "
                "its folder images, or are given with --images"
            )
        texts.append(Item(number, caption))
        if found is not None:
            files[name] = found
        right_images[number] = [name]
        right_texts.setdefault(name, []).append(number)
    if not texts:
        raise SettingError(f"{pairs} holds no pairs: write an image's file, a tab and its caption in each line")
    with clients_errors():
        listed = Listed(tuple(Item(name, str(path)) for name, path in files.items()))
        gallery = image_source(images) if images else listed
    sources: dict[Tower, Source] = {"image": gallery, "text": Listed(tuple(texts))}
    return Inputs(sources, right_images, right_texts)
