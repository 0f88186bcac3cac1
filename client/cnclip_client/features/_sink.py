"""What every sink can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cnclip_client._vocabulary import Id
from cnclip_client.features._ids import id_line

__all__ = ["Dtype", "Sink", "little_endian"]

Dtype: TypeAlias = Literal["float32", "float16"]


class Sink(Protocol):
    """One format, for one job.

    Attributes:
        begins: The files that grow, each with the bytes it begins with.
        outputs: The files that are there after `assemble`, each with the place that it goes to, the result last.
    """

    begins: Mapping[str, bytes]
    outputs: Mapping[str, Path]

    def refusal(self, one: Id) -> str:
        """Returns why an id cannot be written, or nothing if it can, as any can be in JSON."""
        return ""

    def id_bytes(self, one: Id) -> bytes:
        """Returns an id as this format writes it, by default as JSON; ids that are written alike are the same."""
        return id_line(one)

    def encode(self, ids: Sequence[Id], features: NDArray[np.floating[Any]]) -> Mapping[str, bytes]:
        """Returns what to append to which file for some features, [n, D], of the ids."""

    def assemble(self, folder: Path, rows: int) -> None:
        """Makes the outputs of the files in a folder. It may be cut off at any moment, and called again.

        Args:
            folder: Where the files are, all of them whole.
            rows: How many features were written.
        """


def little_endian(dtype: Dtype) -> str:
    """Returns numpy's name of a type with its byte order, which files need."""
    return {"float32": "<f4", "float16": "<f2"}[dtype]
