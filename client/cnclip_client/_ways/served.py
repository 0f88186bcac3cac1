"""What every way has: the servers that are asked, and what goes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from numpy.typing import NDArray

from cnclip_client._blocks import Block
from cnclip_client._connection.endpoints import Endpoints
from cnclip_client._connection.towers import Towers
from cnclip_client._connection.wire import Tensors
from cnclip_client._flow.concurrency import Found
from cnclip_client._flow.pipeline import Pipeline
from cnclip_client._info import ModelInfo
from cnclip_client._settings import Limits
from cnclip_client._vocabulary import Kind

__all__ = ["Rows", "Served", "Way", "rows_of_request"]

Rows = Callable[[Sequence[bytes]], NDArray[Any]]
"""Makes a model's input of a request's payloads."""


class Way(Protocol):
    """A way from items to features."""

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of items block by block, in their order."""

    def close(self) -> None:
        """Ends what it has started, if that is anything."""
        return None


@dataclass(frozen=True, eq=False)
class Served:
    """What is asked, and within which bounds.

    Attributes:
        endpoints: The servers.
        towers: Their models.
        limits: What a run may hold.
        found: What earlier runs have found.
    """

    endpoints: Endpoints
    towers: Towers
    limits: Limits
    found: Found = field(default_factory=Found)

    def pipeline(
        self,
        kind: Kind,
        info: ModelInfo,
        normalize: bool,
        harmless: Callable[[], bytes],
        prepared: tuple[str, Rows] | None = None,
    ) -> Pipeline:
        """Returns what sends payloads to a tower's model.

        Args:
            kind: The tower.
            info: What its servers say of it.
            normalize: Whether each feature is divided by its length.
            harmless: Gives an item that does a server no harm, another one each time.
            prepared: The encoder's input, and what makes it of payloads; None where items go to the ensemble.
        """
        output = f"{kind}_features" if normalize else f"unnorm_{kind}_features"
        tensors = Tensors(kind.upper(), output) if prepared is None else Tensors(prepared[0], output, prepared[1])
        return Pipeline(
            self.endpoints,
            model=self.towers.name(kind),
            version=info.version,
            tensors=tensors,
            embedding_size=info.embedding_size,
            limits=self.limits,
            found=self.found,
            harmless=harmless,
            verify=partial(self.towers.require_unchanged, kind),
        )


def rows_of_request(info: ModelInfo, batch_size: int | None) -> int:
    """How many rows a request has."""
    return min(batch_size or info.preferred_batch_size, info.max_batch_size)
