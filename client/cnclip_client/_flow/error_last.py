"""A source's error, kept until all that the source gave before it has been dealt with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["ErrorLast"]

_T = TypeVar("_T")


class ErrorLast(Generic[_T]):
    """Iterates over a source, once; an error of the source looks like its end, and `raise_error` raises it."""

    def __init__(self, source: Iterable[_T]) -> None:
        self._source = source
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[_T]:
        try:
            # `yield from` would close a caller's generator as a run is left early.
            for one in self._source:  # noqa: UP028
                yield one
        except Exception as error:
            self._error = error

    def raise_error(self) -> None:
        """Raises what the source raised, if it did."""
        if self._error is not None:
            raise self._error
