"""How pictures in a card's memory become squares in it: what the kernels of `resize.cu` are told, and where."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnclip_card._device import Device

__all__ = ["KERNELS", "SOURCE", "Picture", "make_squares", "room_for"]

SOURCE = Path(__file__).with_name("resize.cu")
KERNELS = ("weigh", "shrink")

_PICTURE = struct.Struct("<QqQQQQ6i")  # `struct picture`
_THREADS = 128
# Blocks of a picture: those of a batch fill a card many times over.
_BLOCKS = 64
_ALIGNED = 256


@dataclass(frozen=True)
class Picture:
    """A decoded picture in the card's memory.

    Attributes:
        address: of its first pixel: red, green and blue, a byte each.
        pitch: bytes from a row to the next.
        wide: in pixels.
        high: in pixels.
        owner: what holds the memory.
    """

    address: int
    pitch: int
    wide: int
    high: int
    owner: object = None


@dataclass(frozen=True)
class _Layout:
    """How much memory one picture takes beside its pixels, and its square's."""

    across: int
    down: int
    between: int
    taps: tuple[int, int]

    @property
    def size(self) -> int:
        return _PICTURE.size + self.across + self.down + self.between


def _layout(wide: int, high: int, side: int, vertical_first: bool) -> _Layout:
    taps = _taps(wide, side), _taps(high, side)
    across, down = (_aligned(4 * side * (2 + one)) for one in taps)
    return _Layout(across, down, _aligned(3 * side * (wide if vertical_first else high)), taps)


def room_for(wide: int, high: int, side: int, vertical_first: bool) -> int:
    """Bytes of the card's memory that a picture takes until its square is made, its pixels among them."""
    return 3 * wide * high + _layout(wide, high, side, vertical_first).size


def make_squares(
    device: Device,
    pictures: Sequence[Picture],
    squares: Sequence[int],
    side: int,
    vertical_first: Callable[[int, int, int], bool],
) -> None:
    """Resizes pictures, and returns once that is done.

    Args:
        device: whose memory they are in.
        pictures: at least one.
        squares: for each the address of what is made of it, uint8 `[side, side, 3]`.
        side: of the squares, in pixels.
        vertical_first: whether Pillow shrinks a picture of so many columns and rows in height first.

    Raises:
        Exception: whatever the device raises; what is at `squares` then is nothing.
    """
    orders = [vertical_first(one.wide, one.high, side) for one in pictures]
    layouts = [_layout(one.wide, one.high, side, order) for one, order in zip(pictures, orders, strict=True)]
    head = _aligned(_PICTURE.size * len(pictures))
    memory = device.allocate(head + sum(one.across + one.down + one.between for one in layouts))
    at, told = memory.address + head, b""
    for picture, layout, order, square in zip(pictures, layouts, orders, squares, strict=True):
        across, down, between = at, at + layout.across, at + layout.across + layout.down
        at = between + layout.between
        told += _PICTURE.pack(
            *(picture.address, picture.pitch, between, square, across, down),
            *(picture.wide, picture.high, *layout.taps, order, 0),
        )
    device.write(memory.address, told)
    device.launch("weigh", (-(-side // _THREADS), len(pictures), 2), _THREADS, memory.address, side)
    for second in (0, 1):
        device.launch("shrink", (_BLOCKS, len(pictures), 1), _THREADS, memory.address, side, second)
    device.wait()


def _taps(size: int, side: int) -> int:
    """As many samples as one may be made of, as Pillow reckons it."""
    return math.ceil(2.0 * max(1.0, size / side)) * 2 + 1


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
