"""One side's features of one kind of items, in a temporary file: however many there are, memory holds their ids."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnclip_builder.comparison.inputs import Id, Source, clients_errors
from cnclip_builder.comparison.sides import Side
from cnclip_builder.tensors import Tower


@dataclass(frozen=True)
class Encoded:
    """Features of a source's items.

    Attributes:
        ids: of all items, in the source's order.
        places: int64 `[N]`, rising: which items have features.
        features: float32 `[N, D]`, mapped from a file; row i is that of item `places[i]`.
        failures: by place, why an item has none.
    """

    ids: list[Id]
    places: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    failures: dict[int, str]


def encode_source(side: Side, tower: Tower, source: Source, file: Path) -> Encoded:
    """Encodes all that a source has.

    Args:
        side: with what.
        tower: what its items are.
        source: of them.
        file: where features go; deleted by whoever made its folder.

    Raises:
        BuildError: the side or the source can't be had.
    """
    ids: list[Id] = []
    failures: dict[int, str] = {}
    asked, places = array("q"), array("q")

    def values() -> Iterator[Any]:
        for place, item in enumerate(source.items()):
            ids.append(item.id)
            if item.failure or item.value is None:
                failures[place] = item.failure or "is empty"
            else:
                asked.append(place)
                yield item.value

    with clients_errors(), file.open("wb") as written:
        for block in side.encode(tower, values()):
            # A zero has no direction: its distances would be NaN, and so every figure that counts them.
            usable = np.isfinite(block.features).all(axis=1) & (block.features != 0).any(axis=1)
            for index, reason in block.failures.items():
                failures[asked[index]] = reason
            for index in block.indices[~usable].tolist():
                failures[asked[index]] = "its feature is zero, or holds NaN or infinity"
            places.extend(asked[index] for index in block.indices[usable].tolist())
            written.write(np.ascontiguousarray(block.features[usable], dtype=np.float32).data)
    shape = (len(places), side.facts.embedding_size)
    features = np.memmap(file, np.float32, "r", shape=shape) if places else np.empty(shape, np.float32)
    return Encoded(ids, np.array(places, np.int64), features, dict(sorted(failures.items())))
