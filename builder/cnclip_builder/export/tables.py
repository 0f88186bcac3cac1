"""A text encoder's two tables, compared row by row: its probes reach a few hundred tokens, and 52 positions at most.

All 21,128 rows are as many tokens as 400 texts have that fill their context; an encoder's tolerance would hide two that
are near to each other in each other's place. So the numbers themselves are compared, which takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from cnclip_builder.errors import ParityError

_FP16_MOST = np.float32(65504)
# A step of FP16: who rounds a sum at once may come out one beside who rounds it twice. The smallest numbers share one.
_FP16_STEP, _FP16_LEAST_STEP = np.float32(2**-10), np.float32(2**-24)
_CHUNK = 1024  # rows at once, so that what is computed of them stays small


@dataclass(frozen=True, eq=False)
class Tables:
    """What is looked up for a text's tokens.

    Attributes:
        words: float32 or float16 `[V, width]`, a row for each token id.
        positions: float32 or float16 `[P, width]`, a row for each place in a text, that of type 0 included.
    """

    words: npt.NDArray[Any]
    positions: npt.NDArray[Any]


def tables_of_module(embeddings: Any) -> Tables:
    """Takes them out of a `cn_clip.clip.modeling_bert.BertEmbeddings`."""
    positions, kind = (
        part.weight.detach().double().numpy()
        for part in (embeddings.position_embeddings, embeddings.token_type_embeddings)
    )
    return Tables(embeddings.word_embeddings.weight.detach().numpy(), (positions + kind[0]).astype(np.float32))


def read_tables(path: Path) -> Tables:
    """Reads them from an ONNX file of this builder's: what ids are gathered from, and what is cut to their length.

    Raises:
        ParityError: the file has no one table of either kind.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}

    def only(operator: str) -> npt.NDArray[Any]:
        names = {node.input[0] for node in graph.node if node.op_type == operator and node.input[0] in weights}
        if len(names) != 1:
            raise ParityError(f"{path.name} has {len(names)} tables that a {operator} reads instead of one: report it")
        return numpy_helper.to_array(weights[names.pop()], str(path.parent))

    return Tables(only("Gather"), only("Slice"))


def require_same_tables(path: Path, found: Tables, expected: Tables) -> None:
    """Compares tables: FP32's are equal, and FP16's no further than rounding takes them.

    Args:
        path: the ONNX file of those that were found, named in the error.
        found: its tables.
        expected: those that they are to be.

    Raises:
        ParityError: a row is another one; the message names it.
    """
    for what, ours, theirs in (
        ("token", found.words, expected.words),
        ("position", found.positions, expected.positions),
    ):
        if ours.shape != theirs.shape:
            raise ParityError(
                f"{path.name} has a table of {what}s {list(ours.shape)} instead of {list(theirs.shape)}: report it"
            )
        off = np.flatnonzero(~_same_rows(ours, theirs))
        if off.size:
            more = f", and {off.size - 1} more" if off.size > 1 else ""
            raise ParityError(
                f"{path.name}: what it has for {what} {off[0]} is not what PyTorch has{more}: build it again; if that "
                "does not help, report it"
            )


def _same_rows(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    chunks = [
        _same_numbers(ours[start : start + _CHUNK], theirs[start : start + _CHUNK]).all(axis=1)
        for start in range(0, len(ours), _CHUNK)
    ]
    return np.concatenate(chunks)


def _same_numbers(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    both_nan: npt.NDArray[np.bool_] = np.isnan(ours) & np.isnan(theirs)
    if ours.dtype == theirs.dtype == np.float32:
        equal: npt.NDArray[np.bool_] = both_nan | (ours == theirs)
        return equal
    one, other = (np.clip(numbers.astype(np.float32), -_FP16_MOST, _FP16_MOST) for numbers in (ours, theirs))
    near: npt.NDArray[np.bool_] = both_nan | (np.abs(one - other) <= _FP16_STEP * np.abs(other) + _FP16_LEAST_STEP)
    return near
