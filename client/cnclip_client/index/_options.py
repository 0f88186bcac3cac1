"""How an index is made, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cnclip_client.index._record import Record

__all__ = ["Built", "IndexOptions", "Report"]

Report: TypeAlias = Callable[[str, int, int], None]
"""Called now and then with what is being done, and for how many rows of how many it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """How an index is made. To one that there is, rows are added as it was made.

    Attributes:
        memory_bytes: What making the index, and searching it, may take; by default half of what is available.
        factory: faiss's `index_factory` string; by default it is chosen by the number of rows and the memory.
        recall: Share of the exact best 10 that it is tuned to find.
        normalize: Whether to divide each feature by its length.
        rescore: Whether features are kept beside the index, as float16, to score anew what it proposes; by default
            where it does not hold them whole.
        overwrite: Whether an index that there is, is made anew. It stays until the new one is whole.
    """

    memory_bytes: int | None = None
    factory: str | None = None
    recall: float = 0.95
    normalize: bool = False
    rescore: bool | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall must be above 0 and at most 1, got {self.recall}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What came of a call.

    Attributes:
        record: Of the index as it is now.
        added: How many rows this call put into it; 0 where nothing was new.
    """

    record: Record
    added: int
