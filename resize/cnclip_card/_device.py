"""A GPU as this package needs it: memory, and the kernels of `resize.cu`."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Device", "Memory"]


class Memory(Protocol):
    """Memory of a device, which has it back once nobody holds this."""

    @property
    def address(self) -> int:
        """Of its first byte."""


class Device(Protocol):
    """A GPU. Its methods raise whatever its libraries do, as when its memory is full."""

    @property
    def memory(self) -> int:
        """Bytes that it has in all."""

    def allocate(self, size: int, *, to_hand_on: bool = False) -> Memory:
        """Gives memory of so many bytes; `to_hand_on`: such as other processes may be given by `tensor`."""

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes into its memory."""

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out of its memory."""

    def launch(self, kernel: str, blocks: tuple[int, int, int], threads: int, pictures: int, *numbers: int) -> None:
        """Has it run a kernel, behind what it was asked for before.

        Args:
            kernel: its name.
            blocks: how many, in three dimensions.
            threads: of each.
            pictures: the address of what the kernel is told.
            numbers: its other arguments, each an `int` of C.
        """

    def wait(self) -> None:
        """Returns once it has done all that it was asked for."""

    def tensor(self, memory: Memory, offset: int, shape: tuple[int, ...]) -> Any:
        """A capsule of DLPack for uint8 of a shape, `offset` bytes into memory that it then holds."""
