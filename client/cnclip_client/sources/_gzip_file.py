"""Reads a gzip stream of tar archives, and finds the same in a damaged one whatever of it is passed over.

The standard library's `gzip` loses what it has unpacked in the step that meets the damage, and its steps depend on what
it is asked for: who passes over an item would see others behind it than who reads it. Here all steps are alike.
"""

from __future__ import annotations

import io
import zlib
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["GzipFile"]

_READ_BYTES = 64 * 1024
_STEP_BYTES = 8 * 1024
_WITH_HEADER = 16 + zlib.MAX_WBITS


class GzipFile(io.RawIOBase):
    """The unpacked bytes; to go back, it unpacks all of them anew.

    Reading raises zlib.error where the stream is damaged and EOFError where it is cut off, and OSError.

    Attributes:
        packed_bytes: How much of the packed file was read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Begins at the file's own beginning."""
        super().__init__()
        self._file = file
        self._place = 0
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._failure: Exception | None = None
        self._begin, self._step, self._packed = 0, b"", b""
        self._unpacking = zlib.decompressobj(_WITH_HEADER)
        self.packed_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("where it ends is not known before it is unpacked")
        self._place = max(offset + (self._place if whence == io.SEEK_CUR else 0), 0)
        return self._place

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._place < self._begin:
            self._rewind()
        while self._place >= self._begin + len(self._step):
            if self._failure is not None:
                raise self._failure
            self._begin += len(self._step)
            self._step = b""
            try:
                self._step = self._next()
            except (zlib.error, EOFError) as error:
                self._failure = error
                raise
            if not self._step:
                return 0
        view = memoryview(buffer).cast("B")
        inside = self._place - self._begin
        taken = self._step[inside : inside + len(view)]
        view[: len(taken)] = taken
        self._place += len(taken)
        return len(taken)

    def _next(self) -> bytes:
        """Unpacks one step; nothing at the end."""
        while True:
            if not self._unpacking.eof:
                step = self._unpacking.decompress(self._packed, _STEP_BYTES)
                self._packed = self._unpacking.unconsumed_tail or self._unpacking.unused_data
                if step:
                    return step
            elif following := self._packed.lstrip(b"\0"):  # as pigz and bgzip write them
                self._packed, self._unpacking = following, zlib.decompressobj(_WITH_HEADER)
                continue
            else:
                self._packed = b""
            if not self._packed:
                self._packed = self._file.read(_READ_BYTES)
                self.packed_bytes += len(self._packed)
                if not self._packed:
                    if self._unpacking.eof:
                        return b""
                    raise EOFError("it ends before its end")
