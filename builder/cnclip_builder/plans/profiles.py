"""Optimisation profiles: the ranges of batch size and text length that a TensorRT plan is made for.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnclip_builder.errors import SettingError
from cnclip_builder.tensors import BATCH, LENGTH, InputSpec

if TYPE_CHECKING:
    Shape = tuple[int, ...]


_SMALL_BATCH = 4
"""The largest batch of the profile that is tuned for a lone request."""


@dataclass(frozen=True)
class ShapeRange:
    """The sizes of an axis that a plan takes, and the one that it is tuned for.

    Attributes:
        min: smallest size.
        opt: the size that kernels are chosen for.
        max: largest size.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        """Refuses what is no range.

        Raises:
            SettingError: sizes are no whole numbers, below 1 or out of order.
        """
        sizes = (self.min, self.opt, self.max)
        if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes):
            raise SettingError(f"{self}: sizes are whole numbers, such as 1:16:64")
        if not 1 <= self.min <= self.opt <= self.max:
            raise SettingError(f"{self} is no range: choose 1 <= min <= opt <= max, such as 1:16:64")

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> ShapeRange:
        """Reads "min:opt:max".

        Raises:
            SettingError: it is not of that form.
        """
        if not re.fullmatch(r"\d{1,6}:\d{1,6}:\d{1,6}", text):
            raise SettingError(f"{text!r} is no range: write min:opt:max, such as 1:16:64")
        return cls(*map(int, text.split(":")))


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: a range for every axis that varies.

    Attributes:
        ranges: by the name of the axis.
    """

    ranges: Mapping[str, ShapeRange]

    @property
    def batch(self) -> ShapeRange:
        """Rows of a batch."""
        return self.ranges[BATCH]

    @property
    def length(self) -> ShapeRange | None:
        """Tokens of a text; None for images."""
        return self.ranges.get(LENGTH)

    def shapes(self, tensor: InputSpec) -> tuple[Shape, Shape, Shape]:
        """The tensor's smallest, tuned-for and largest shape.

        Raises:
            SettingError: the profile names an axis that the tensor lacks, or lacks one that varies.
        """
        real = tensor.dynamic_axes
        for axis in self.ranges:
            if axis not in real:
                raise SettingError(
                    f"input {tensor.name!r} has no axis {axis!r}: its axes that vary are {_listed(real)}"
                )
        for axis in real:
            if axis not in self.ranges:
                raise SettingError(
                    f"the profile gives no range for axis {axis!r} of input {tensor.name!r}: name {_listed(real)}"
                )
        low, tuned, high = (
            tensor.shape({axis: getattr(sizes, bound) for axis, sizes in self.ranges.items()})
            for bound in ("min", "opt", "max")
        )
        return low, tuned, high

    def as_dict(self) -> dict[str, str]:
        """The ranges as text, for a sidecar."""
        return {axis: str(sizes) for axis, sizes in self.ranges.items()}

    def __str__(self) -> str:
        return ",".join(f"{axis}={sizes}" for axis, sizes in self.ranges.items())

    @classmethod
    def from_dict(cls, ranges: Mapping[str, str]) -> Profile:
        """Reads what `as_dict` gave."""
        return cls({axis: ShapeRange.parse(sizes) for axis, sizes in ranges.items()})

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Reads "batch=1:16:64,length=3:20:52".

        Raises:
            SettingError: it is not of that form, or names no batch.
        """
        ranges: dict[str, ShapeRange] = {}
        for part in text.split(","):
            axis, equals, sizes = part.partition("=")
            if not equals or axis in ranges:
                raise SettingError(
                    f"{text!r} is no profile: write batch=1:16:64, and for texts ,length=3:20:52 after it"
                )
            ranges[axis] = ShapeRange.parse(sizes)
        if BATCH not in ranges:
            raise SettingError(f"profile {text!r} gives no range for 'batch': write batch=1:16:64")
        return cls(ranges)


def default_profiles(
    max_batch_size: int, context_length: int | None = None, tuned_length: int | None = None
) -> tuple[Profile, ...]:
    """The profiles of an encoder: one tuned for a lone request, one for full batches.

    TensorRT chooses kernels for the tuned-for shape alone. The tiles that fill a GPU at a batch of 32 leave most of it
    idle at 1, and the reverse costs throughput, so both ends of a served model's load get kernels of their own; Triton
    picks, for each batch, the profile whose tuned-for shape is nearest. Texts are tuned for a length that they are
    served in: any between would be computed by nobody.

    Args:
        max_batch_size: most rows of a batch.
        context_length: most tokens of a text; None for images.
        tuned_length: the tokens to which most texts are padded; None for `context_length`.
    """

    def profile(batch: ShapeRange) -> Profile:
        if context_length is None:
            return Profile({BATCH: batch})
        tuned = min(tuned_length or context_length, context_length)
        return Profile({BATCH: batch, LENGTH: ShapeRange(3, tuned, context_length)})  # 3: [CLS], one token, [SEP]

    full = profile(ShapeRange(1, max(1, max_batch_size // 2), max_batch_size))
    if max_batch_size < _SMALL_BATCH * 2:
        return (full,)
    return (profile(ShapeRange(1, 1, _SMALL_BATCH)), full)


def largest_batch(profiles: Iterable[Profile]) -> int:
    """Most rows of a batch that any of the profiles takes."""
    return max(profile.batch.max for profile in profiles)


def check_profiles(profiles: Iterable[Profile], tensor: InputSpec, context_length: int | None = None) -> None:
    """Checks profiles against the input they are for.

    Args:
        profiles: what a plan is to be made with.
        tensor: the encoder's input.
        context_length: the longest text that is served; a profile has to reach it.

    Raises:
        SettingError: there is none, an axis is unknown or missing, or served texts would be too long for all of them.
    """
    chosen = list(profiles)
    if not chosen:
        raise SettingError("a plan needs a profile: write batch=1:16:64, and for texts ,length=3:20:52 after it")
    for profile in chosen:
        profile.shapes(tensor)
    if context_length is not None and not any(_spans(profile.length, context_length) for profile in chosen):
        raise SettingError(
            f"no profile takes texts of 3 to {context_length} tokens, which the server makes: "
            f"write length=3:16:{context_length}"
        )


def _spans(length: ShapeRange | None, context_length: int) -> bool:
    return length is not None and length.min <= 3 and length.max >= context_length


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
