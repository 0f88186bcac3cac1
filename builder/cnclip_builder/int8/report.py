"""What the conversion of an encoder to INT8 came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cnclip_builder.parity.distance import Parity

LEAST_INT8_SPEED_UP = 1.1
"""How many times FP32's speed INT8 must reach to be worth its loss: 1, and a margin for the measurement."""


@dataclass(frozen=True)
class Int8Report:
    """How an encoder came out.

    Attributes:
        products: how many matrix products could be quantised.
        kept_in_fp32: the nodes of those that were not, because the tolerance would not hold.
        smoothed: how many have their input smoothed.
        speed_up: how many times FP32's speed it reaches on one thread of the machine that built it.
        parity: with FP32 on the sample pictures or texts and the probes: worst row.
    """

    products: int
    kept_in_fp32: tuple[str, ...]
    smoothed: int
    speed_up: float
    parity: Parity

    @classmethod
    def from_dict(cls, report: Mapping[str, Any]) -> Int8Report:
        """Reads what a sidecar holds of it."""
        kept, parity = tuple(report["kept_in_fp32"]), Parity(**report["parity"])
        return cls(**{**report, "kept_in_fp32": kept, "parity": parity})
