"""What steps find: each kind of row is a section of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cnclip_builder.tensors import Tower

__all__ = ["Ceiling", "Fact", "Memory", "PassedOver", "Rate", "Report", "Row", "Setup", "Timing", "Verified", "Work"]


class PassedOver(Exception):
    """A step has nothing to measure here; the message says what is missing."""


@dataclass(frozen=True)
class Setup:
    """What the steps measure.

    Attributes:
        arch: The architecture, or a .json file.
        checkpoint: A .pt file, or random:SEED.
        gpu: Whether on a GPU, in FP16; else on the CPU, in FP32.
        folder: Where repositories are built.
        seconds: How long each thing is measured, at least.
    """

    arch: str
    checkpoint: str
    gpu: bool
    folder: Path
    seconds: float

    def repository(self, platform: str) -> Path:
        """The repository of one of Triton's backends."""
        return self.folder / platform


@dataclass(frozen=True)
class Fact:
    """Something about the machine.

    Attributes:
        what: It is about.
        value: What was found; what is missing and how to get it.
    """

    what: str
    value: str


@dataclass(frozen=True)
class Ceiling:
    """How fast a matrix product is that has the card for itself.

    Attributes:
        side: Of the square matrices.
        dtype: Of their elements.
        tflops: 10^12 operations a second, a multiplication and an addition counted as two.
    """

    side: int
    dtype: str
    tflops: float


@dataclass(frozen=True)
class Work:
    """What an encoder computes as cn_clip has it: products and convolutions, all tokens of the last block too.

    Attributes:
        tower: The encoder.
        length: Tokens of a text; 0 for images.
        gflop: 10^9 operations an item.
    """

    tower: Tower
    length: int
    gflop: float


@dataclass(frozen=True)
class Timing:
    """A batch in process, inputs and outputs where the encoder runs.

    Attributes:
        way: What ran it.
        tower: The encoder.
        batch_size: Items.
        length: Tokens of a text; 0 for images.
        first_ms: The first run of this shape.
        ms: The median of later runs, each of which waits for its result.
    """

    way: str
    tower: Tower
    batch_size: int
    length: int
    first_ms: float
    ms: float

    @property
    def items_per_s(self) -> float:
        """Items a second, one batch after another."""
        return self.batch_size / self.ms * 1000


@dataclass(frozen=True)
class Verified:
    """How far served features are from PyTorch's, as `cnclip-build verify` has it.

    Attributes:
        way: Triton's backend for the encoder.
        tower: The encoder.
        rows: That were compared.
        cosine, centred: 1 - cosine of the worst row, as it is and with the mean taken off.
        cosine_bound, centred_bound: What passes.
    """

    way: str
    tower: Tower
    rows: int
    cosine: float
    cosine_bound: float
    centred: float
    centred_bound: float


@dataclass(frozen=True)
class Rate:
    """A load on a server.

    Attributes:
        way: Triton's backend for the encoder; "card" where JPEGs are decoded there, or by the host beside it.
        tower: The encoder.
        what: Was sent.
        items: In each request; of mixed sizes the mean.
        at_once: Requests under way.
        per_s: Items a second.
        median_ms, p95_ms: What a request took.
        host_ms: Of all of the host's processors together an item, the server's or, in process, this one's.
    """

    way: str
    tower: Tower
    what: str
    items: int
    at_once: int
    per_s: float
    median_ms: float
    p95_ms: float
    host_ms: float


@dataclass(frozen=True)
class Memory:
    """What was taken of the card's memory; on a CPU, of the machine's.

    Attributes:
        way: What took it.
        what: When.
        mib: How much.
    """

    way: str
    what: str
    mib: float


Row = Fact | Ceiling | Work | Timing | Verified | Rate | Memory
Report = Callable[[Row], None]
"""Takes a row as soon as it is found: what a step found before it crashed is kept."""
