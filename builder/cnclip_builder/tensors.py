"""The words that every stage shares: the two encoders, their precisions, and the tensors at their edges.

This module travels to machines that have little more than TensorRT (see `plans.bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    Shape = tuple[int, ...]

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")

Precision = Literal["fp32", "fp16", "int8"]
ALL_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
"""What is always made; INT8 is made where it is asked for."""

BATCH, LENGTH = "batch", "length"
"""The axes that vary: rows of a batch, and tokens of a text."""

FP32_PREFIX = "fp32_"
"""Begins the name of every ONNX node that computes in FP32 in an FP16 encoder, so that a TensorRT which chooses types
itself (8.x) can be held to it: pixels to floats, LayerNormalization written out, the L2 norm."""


@dataclass(frozen=True)
class InputSpec:
    """The input tensor of an encoder.

    Attributes:
        name: of the tensor.
        dtype: its numpy type: "uint8", "int32" or "float32".
        axes: each a fixed size, or the name of an axis that varies.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]

    @property
    def dynamic_axes(self) -> tuple[str, ...]:
        """Names of the axes that vary."""
        return tuple(axis for axis in self.axes if isinstance(axis, str))

    def shape(self, sizes: Mapping[str, int]) -> Shape:
        """The tensor's shape at these sizes of the axes that vary."""
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.axes)


@dataclass(frozen=True)
class TensorNames:
    """Names of an encoder's tensors.

    Attributes:
        input: what cn_clip's scripts call its input.
        unnormalised: what they call its output.
        served_input: what the served encoder calls its input.
        normalised: the L2-normalised features that the served encoder adds.
    """

    input: str
    unnormalised: str
    served_input: str
    normalised: str


TENSORS: dict[Tower, TensorNames] = {
    "image": TensorNames("image", "unnorm_image_features", "pixels", "image_features"),
    "text": TensorNames("text", "unnorm_text_features", "text", "text_features"),
}
