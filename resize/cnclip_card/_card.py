"""A card that decodes batches: within a bound of its memory, and never at the cost of a row."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from cnclip_resize import TRIED, TRIED_SIDE, order_of_passes
from PIL import Image

from cnclip_card._decoder import Decoder, NvImageCodec
from cnclip_card._device import Device, Memory
from cnclip_card._errors import CardUnfit
from cnclip_card._jpegs import size_for_card
from cnclip_card._resize import Picture, make_squares, room_for

__all__ = ["Card", "Prepared", "Squares", "open_card"]

# Pictures that are decoded at once may take so much of the card's memory, all processes of a server together, and so
# much for each of them at most.
_SHARE_OF_MEMORY = 1 / 16
_MOST_MEMORY = 1 << 30

# A smooth picture that is decoded once for each kind of JPEG that nvJPEG treats differently; and by how many grey
# levels it may differ from Pillow's on average: in another order of colours, or without them, it is tens of them off.
_TRIED_PICTURE = (64, 48)
_TRIED_KINDS: tuple[tuple[str, dict[str, int]], ...] = (
    ("RGB", {}),
    ("RGB", {"subsampling": 0}),
    ("RGB", {"subsampling": 1}),
    ("RGB", {"progressive": 1}),
    ("L", {}),
)
_MOST_DIFFERENCE = 4.0


@dataclass
class Squares:
    """The pixels of a batch, in the card's memory.

    Attributes:
        rows: those that the card has made; of the others there is nothing, until they are written.
        side: of each square, in pixels.
        why_not: what the card said where it failed at a row; empty if it did not.
        full: whether it failed for want of memory.
    """

    side: int
    rows: set[int] = field(default_factory=set)
    why_not: str = ""
    full: bool = False
    _device: Any = None
    _memory: Memory | None = None

    def write(self, row: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Puts a row's pixels, uint8 `[side, side, 3]`, that were made elsewhere into the card's memory."""
        self._device.write(self._address(row), np.ascontiguousarray(pixels).tobytes())

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """Copies a row's pixels, uint8 `[side, side, 3]`, out of the card's memory."""
        pixels: npt.NDArray[np.uint8] = self.array(row, 1)[0]
        return pixels

    def array(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Copies rows that follow each other out of the card's memory, uint8 `[count, side, side, 3]`."""
        data = self._device.read(self._address(first), count * self._bytes)
        return np.frombuffer(data, np.uint8).reshape(count, self.side, self.side, 3)

    def fail(self, error: Exception) -> None:
        """Notes that the card failed."""
        self.why_not = f"{type(error).__name__}: {error}"
        self.full = isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error).upper().replace(" ", "_")

    def tensor(self, first: int, count: int) -> Any:
        """A capsule of DLPack for rows that follow each other, uint8 `[count, side, side, 3]`; it holds the memory."""
        return self._device.tensor(self._memory, first * self._bytes, (count, self.side, self.side, 3))

    @property
    def _bytes(self) -> int:
        return 3 * self.side * self.side

    def _address(self, row: int) -> int:
        if self._memory is None:
            raise AssertionError("no row is on the card")
        return self._memory.address + row * self._bytes


@dataclass(frozen=True)
class Prepared:
    """What became of a batch.

    Attributes:
        rows: each one's pixels, uint8 `[side, side, 3]`, or what says why it has none; None where the card alone has
            them.
        squares: the pixels of all rows that have some, in the card's memory; None if the card made none.
        on_card: how many the card has made.
        why_not: what the card said where it failed at this batch; empty if it did not.
        full: whether it failed for want of memory.
    """

    rows: list[Any]
    squares: Squares | None
    on_card: int
    why_not: str
    full: bool


class Card:
    """A GPU that decodes and resizes.

    Attributes:
        about: what decodes, in a line for logs.

    Args:
        device: the GPU.
        decoder: what decodes into its memory.
        side: of the squares, in pixels.
        formats: Pillow's names of those that are decoded at all.
        memory: bytes that pictures on their way through it may take at once.

    Raises:
        CardUnfit: this Pillow's order of passes is not known, or the card's resize gives other bytes than it.
    """

    def __init__(self, device: Device, decoder: Decoder, *, side: int, formats: Sequence[str], memory: int) -> None:
        self.about = (
            f"JPEGs are decoded by {decoder.about}, {memory >> 20} MiB of them at once, and resized there as Pillow "
            f"{PIL.__version__} does"
        )
        order = order_of_passes()
        if order is None:
            raise CardUnfit(f"Pillow {PIL.__version__} is not one whose resize is known: pip install 'pillow<14'")
        self._vertical_first = order
        self._device, self._decoder = device, decoder
        self._side, self._formats, self._memory = side, tuple(formats), memory
        try:
            unequal = [size for size in TRIED if not self._is_equal(size)]
        except Exception as error:
            raise CardUnfit(f"its kernels do not run ({type(error).__name__}: {error})") from error
        if unequal:
            raise CardUnfit(f"its resize of {unequal[0]} gives other bytes than Pillow {PIL.__version__}")
        self._require_pictures()

    def suited(self, images: Sequence[bytes]) -> dict[int, tuple[int, int]]:
        """Chooses by their headers what the card is to decode: width and height by the row."""
        sizes = ((row, size_for_card(image, self._formats)) for row, image in enumerate(images))
        return {row: size for row, size in sizes if size is not None and self._room(size) <= self._memory}

    def prepare(self, images: Sequence[bytes], exact: Callable[[Sequence[bytes]], Iterable[Any]]) -> Prepared:
        """Makes the pixels of a batch: what the card can, and of the rest what is made of it elsewhere.

        Args:
            images: the files.
            exact: decodes files without a card; it gives for each its pixels, uint8 `[side, side, 3]`, or what says why
                it has none. It may return before they are there, and is called up to twice.
        """
        suited = self.suited(images)
        beside = [row for row in range(len(images)) if row not in suited]
        others = iter(exact([images[row] for row in beside]))  # they may begin at once
        done = self.decode(images, suited)
        missed = [row for row in suited if row not in done.rows]
        made = dict(zip(missed, exact([images[row] for row in missed]), strict=True))
        made.update(zip(beside, others, strict=True))
        if done.rows:
            try:
                for row, pixels in made.items():
                    if isinstance(pixels, np.ndarray):
                        done.write(row, pixels)
            except Exception as error:  # the card is full, or gone: nothing of what is there counts
                done.fail(error)
                lost = sorted(done.rows)
                made.update(zip(lost, exact([images[row] for row in lost]), strict=True))
                done.rows.clear()
        rows = [made.get(row) for row in range(len(images))]
        return Prepared(rows, done if done.rows else None, len(done.rows), done.why_not, done.full)

    def decode(self, images: Sequence[bytes], suited: Mapping[int, tuple[int, int]]) -> Squares:
        """Decodes and resizes what it can of a batch. It does not raise: what is not done is for others to do.

        Args:
            images: the files of the batch.
            suited: of them, what `suited` gave.
        """
        done = Squares(self._side, _device=self._device)
        if not suited:
            return done
        try:
            done._memory = self._device.allocate(len(images) * done._bytes, to_hand_on=True)
            for rows in self._portions(suited):
                decoded = self._decoder.decode([images[row] for row in rows], [suited[row] for row in rows])
                made = {row: one for row, one in zip(rows, decoded, strict=True) if one is not None}
                if made:
                    addresses = [done._address(row) for row in made]
                    make_squares(self._device, list(made.values()), addresses, self._side, self._vertical_first)
                done.rows |= set(made)
        except Exception as error:  # of several libraries, which share no class of errors
            done.fail(error)
        return done

    def _require_pictures(self) -> None:
        """Makes sure that the decoder decodes: without nvJPEG's library it starts, and gives nothing for each picture.

        A kind that it leaves to the exact way is no fault.

        Raises:
            CardUnfit: it decodes none, or gives another picture.
        """
        wide, high = _TRIED_PICTURE
        pixels = np.indices((high, wide)).transpose(1, 2, 0) * (4, 3)
        image = Image.fromarray(np.dstack([pixels, 255 - pixels[..., :1]]).astype(np.uint8))
        files = [io.BytesIO() for _ in _TRIED_KINDS]
        for file, (mode, options) in zip(files, _TRIED_KINDS, strict=True):
            image.convert(mode).save(file, "JPEG", quality=95, **options)
        done = self.decode([file.getvalue() for file in files], dict.fromkeys(range(len(files)), image.size))
        if not done.rows:
            raise CardUnfit(
                f"it decodes no JPEG ({done.why_not or 'nvImageCodec gives none: is its nvJPEG installed?'})"
            )
        square = (self._side, self._side)
        for row in sorted(done.rows):
            pillows = Image.open(files[row]).convert("RGB").resize(square, Image.Resampling.BICUBIC)
            if (difference := float(np.abs(done.read(row) - np.asarray(pillows, np.int16)).mean())) > _MOST_DIFFERENCE:
                mode, options = _TRIED_KINDS[row]
                raise CardUnfit(
                    f"its pictures differ by {difference:.0f} grey levels from Pillow {PIL.__version__}'s (JPEG, "
                    f"{', '.join([mode, *options])})"
                )

    def _portions(self, suited: Mapping[int, tuple[int, int]]) -> Iterator[list[int]]:
        """Rows that are on the card at once, within the bound of its memory."""
        rows: list[int] = []
        taken = 0
        for row, size in suited.items():
            room = self._room(size)
            if rows and taken + room > self._memory:
                yield rows
                rows, taken = [], 0
            rows.append(row)
            taken += room
        if rows:
            yield rows

    def _room(self, size: tuple[int, int]) -> int:
        return room_for(*size, self._side, self._vertical_first(*size, self._side))

    def _is_equal(self, size: tuple[int, int]) -> bool:
        """Whether a picture of noise comes out as from Pillow."""
        wide, high = size
        noise = random.Random(wide).randbytes(wide * high * 3)  # noqa: S311
        pixels = self._device.allocate(len(noise))
        square = self._device.allocate(3 * TRIED_SIDE * TRIED_SIDE)
        self._device.write(pixels.address, noise)
        picture = Picture(pixels.address, 3 * wide, wide, high, pixels)
        make_squares(self._device, [picture], [square.address], TRIED_SIDE, self._vertical_first)
        image = Image.frombytes("RGB", size, noise)
        expected = image.resize((TRIED_SIDE, TRIED_SIDE), Image.Resampling.BICUBIC).tobytes()
        return self._device.read(square.address, len(expected)) == expected


def open_card(side: int, formats: Sequence[str], *, number: int = 0, threads: int = 1, processes: int = 1) -> Card:
    """Opens a GPU for decoding.

    Args:
        side: of the squares, in pixels.
        formats: Pillow's names of those that are decoded at all.
        number: the GPU's, as this process sees it.
        threads: of the host, that prepare what the card decodes.
        processes: that do so on the same GPU.

    Raises:
        CardUnfit: there is none that decodes as is promised.
    """
    from cnclip_card._cuda import Cuda

    device = Cuda(number)
    memory = min(int(device.memory * _SHARE_OF_MEMORY / processes), _MOST_MEMORY)
    decoder = NvImageCodec(number, threads, device.stream)
    return Card(device, decoder, side=side, formats=formats, memory=memory)
