"""A remote file that is read as a local one is: what comes next is fetched meanwhile, over several connections."""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from cnclip_client._exceptions import StoreError
from cnclip_client._threads import Waiters

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["RangedFile", "patiently"]

_T = TypeVar("_T")

# Large enough for a connection to reach its speed, and small enough that eight of them are no matter of memory.
_BLOCK_BYTES = 2 * 1024 * 1024
_AHEAD = 8
# Pieces that are kept in all: of two places at once, for formats that go back and forth between two columns.
_KEPT = 2 * _AHEAD + 4
# The libraries below try again by themselves where a connection breaks, but not all of them in the middle of an answer.
_ATTEMPTS = 4
_FIRST_DELAY_S = 0.5


class RangedFile(io.RawIOBase):
    """A remote file, read in pieces of 2 MiB.

    As long as it is read from one piece to the next, eight of them are fetched ahead at the same time. In memory are
    these and some that were read last, 40 MiB at most.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, name: str) -> None:
        """Opens it; nothing is fetched yet.

        Args:
            fetch: Gives the bytes from one place to before another.
            size: The file's bytes.
            name: Its address, for errors.
        """
        super().__init__()
        self.name = name
        self._fetch = fetch
        self._size = size
        self._place = 0
        self._blocks: dict[int, Future[bytes]] = {}
        self._read: OrderedDict[int, None] = OrderedDict()  # those that were read, the last one last
        self._waiters = Waiters(_AHEAD, "fetch")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads up to the end of a piece. Raises StoreError and BadFile."""
        view = memoryview(buffer).cast("B")
        if self._place >= self._size or not view:
            return 0
        number, inside = divmod(self._place, _BLOCK_BYTES)
        data = self._block(number)
        taken = data[inside : inside + len(view)]
        view[: len(taken)] = taken
        self._place += len(taken)
        return len(taken)

    def close(self) -> None:
        if not self.closed:
            self._waiters.close()
            self._blocks.clear()
            self._read.clear()
        super().close()

    def _block(self, number: int) -> memoryview:
        on_the_way = number == 0 or number - 1 in self._blocks
        last = (self._size - 1) // _BLOCK_BYTES
        wanted = range(number, min(number + _AHEAD, last) + 1) if on_the_way else range(number, number + 1)
        for one in wanted:
            if one not in self._blocks:
                self._blocks[one] = self._waiters.submit(lambda one=one: self._fetched(one))  # type: ignore[misc]
        self._read[number] = None
        self._read.move_to_end(number)
        while len(self._blocks) > _KEPT:
            # What was read longest ago; else what was asked for first, ahead of where nobody reads any more.
            gone = next(one for one in (*self._read, *self._blocks) if one not in wanted)
            self._read.pop(gone, None)
            self._blocks.pop(gone).cancel()
        try:
            return memoryview(self._blocks[number].result())
        except BaseException:
            self._blocks.pop(number, None)
            self._read.pop(number, None)
            raise

    def _fetched(self, number: int) -> bytes:
        start = number * _BLOCK_BYTES
        stop = min(start + _BLOCK_BYTES, self._size)
        data = patiently(lambda: self._fetch(start, stop))
        if len(data) != stop - start:
            raise StoreError(
                f"gives {len(data):,} bytes where {stop - start:,} were expected, as if it had been replaced while "
                "it is read; leave it as it is, and begin anew",
                path=self.name,
            )
        return data


def patiently(call: Callable[[], _T]) -> _T:
    """Returns what a call gives, which is made again where a store could not be had for a moment."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return call()
        except StoreError as error:
            if not error.passing:
                raise
        time.sleep(_FIRST_DELAY_S * 2**attempt)
    return call()
