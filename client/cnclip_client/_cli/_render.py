"""How the command shows what it found: JSON lines, tables, TSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cnclip_console import print_table
from numpy.typing import NDArray

from cnclip_client._float32 import DIGITS, rounded

__all__ = [
    "feature_line",
    "harmless_json",
    "info_table",
    "similarity_json",
    "similarity_table",
    "similarity_tsv",
]

# What a terminal obeys: control characters, line breaks and marks of the writing direction. And lone surrogates, which
# UTF-8 cannot hold, but for those that stand for bytes of a path.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")


def harmless_json(value: Any) -> str:
    """Returns a value as JSON, in which Chinese stays Chinese and only what a terminal would obey is escaped."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def feature_line(kind: str, item: str, feature: NDArray[np.float32]) -> bytes:
    """Returns one line of JSON, UTF-8: `{"image": item, "feature": [...]}`.

    A path that is not UTF-8 keeps its own bytes, so that it still names its file.
    """
    numbers = ", ".join([format(value, DIGITS) for value in feature.tolist()])
    return f'{{"{kind}": {harmless_json(item)}, "feature": [{numbers}]}}\n'.encode("utf-8", "surrogateescape")


def similarity_table(images: Sequence[str], texts: Sequence[str], chances: NDArray[np.float32]) -> None:
    """Prints probabilities, images down and texts across, or below each image where that is too wide for the terminal.

    Args:
        images: n_images names.
        texts: n_texts texts.
        chances: float32 [n_images, n_texts]; each image's best is marked with `*`.
    """
    rows = []
    for image, row in zip(images, chances, strict=True):
        best = int(row.argmax())
        rows.append((image, *(f"{one:6.1%}{' *' * (at == best)}" for at, one in enumerate(row.tolist()))))
    print_table(("image", *texts), rows)


def similarity_tsv(images: Sequence[str], texts: Sequence[str], chances: NDArray[np.float32]) -> bytes:
    r"""Returns the same as tab-separated lines; what would break them, or control a terminal, becomes `\t`, `\x1b`."""
    lines = [["image", *texts]]
    for image, row in zip(images, chances, strict=True):
        lines.append([image, *(format(chance, DIGITS) for chance in row.tolist())])
    joined = "".join("\t".join(_cell(cell) for cell in line) + "\n" for line in lines)
    return joined.encode("utf-8", "surrogateescape")


def similarity_json(model: str, images: Sequence[str], texts: Sequence[str], chances: NDArray[np.float32]) -> bytes:
    """Returns the same as one JSON object with `model`, `images`, `texts` and `probabilities`."""
    rows = [rounded(row) for row in chances]
    found = {"model": model, "images": list(images), "texts": list(texts), "probabilities": rows}
    return (harmless_json(found) + "\n").encode("utf-8", "surrogateescape")


def _cell(text: str) -> str:
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\\", "\\\\"))


def info_table(fields: Iterable[tuple[str, Any]]) -> None:
    """Prints names and values in two columns, without those that are empty."""
    shown = [(name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)) for name, value in fields]
    print_table(("", ""), [row for row in shown if row[1]])
