"""Stands in for TensorRT with ONNX Runtime: a "plan" is the name of the ONNX file that it was made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import Device
from cnclip_builder.tensors import InputSpec

A10 = Device("NVIDIA A10", "8.6")
H100 = Device("NVIDIA H100 80GB HBM3", "9.0")

Spoil = Callable[[int, np.ndarray, dict[str, np.ndarray]], dict[str, np.ndarray]]


class StandIn:
    """What `TensorRT` offers; `spoil` may change outputs, as a wrong plan would.

    Like the real one, it refuses shapes outside the ranges of the profile that it is asked to use.
    """

    def __init__(self, version: str = "10.13.0.35", opset: str = "17", spoil: Spoil | None = None) -> None:
        self.version, self.opset = version, opset
        self.spoil = spoil
        self.builds = 0
        self.shapes: list[tuple[int, tuple[int, ...]]] = []
        self._tensor: InputSpec | None = None
        self._profiles: Sequence[Profile] = ()

    def build(
        self,
        graph: Path,
        tensor: InputSpec,
        profiles: Sequence[Profile],
        precision: str,
        options: BuildOptions,
        timing_cache: Path,
    ) -> bytes:
        self.builds += 1
        self._tensor, self._profiles = tensor, profiles
        timing_cache.write_bytes(b"measured")
        return str(graph).encode()

    @contextlib.contextmanager
    def open(self, plan: bytes) -> Iterator[Any]:
        session = onnxruntime.InferenceSession(plan.decode(), providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        names = [output.name for output in session.get_outputs()]

        def run(profile: int, inputs: np.ndarray) -> dict[str, np.ndarray]:
            assert self._tensor is not None
            low, _, high = self._profiles[profile].shapes(self._tensor)
            assert all(a <= size <= b for a, size, b in zip(low, inputs.shape, high, strict=True))
            assert inputs.dtype == self._tensor.dtype
            self.shapes.append((profile, inputs.shape))
            outputs = dict(zip(names, session.run(names, {taken.name: inputs}), strict=True))
            return self.spoil(profile, inputs, outputs) if self.spoil else outputs

        yield run
