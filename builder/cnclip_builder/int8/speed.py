"""Whether an INT8 encoder pays: its speed against FP32's, on this machine, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cnclip_builder.errors import SlowerError
from cnclip_builder.export.check import open_session

_ROUNDS = 7


def measure_speed_up(fp32: Path, int8: Path, inputs: Sequence[npt.NDArray[Any]]) -> float:
    """Times both encoders in turns, each on one thread: other work on the machine then disturbs the ratio least.

    Args:
        fp32: the .onnx file.
        int8: the .onnx file.
        inputs: of both encoders; a round runs all of them.

    Returns:
        FP32's shortest round over INT8's.
    """
    sessions = [open_session(path, threads=1) for path in (fp32, int8)]
    shortest = [float("inf")] * len(sessions)
    for _ in range(1 + _ROUNDS):  # the first warms up; it can't be the shortest by luck
        for index, session in enumerate(sessions):
            started = time.perf_counter()
            for item in inputs:
                session.run(None, {session.get_inputs()[0].name: item})
            shortest[index] = min(shortest[index], time.perf_counter() - started)
    return shortest[0] / shortest[1]


def require_speed_up(what: str, speed_up: float, least: float) -> None:
    """Refuses an encoder that is not faster in INT8.

    Args:
        what: names the encoder in the error.
        speed_up: measured.
        least: what passes.

    Raises:
        SlowerError: it is not fast enough.
    """
    if speed_up < least:
        raise SlowerError(
            f"{what} runs at {speed_up:.2f} times FP32's speed on this machine (at least {least:g} passes; another "
            "--least-int8-speed-up may be chosen if another machine is to serve it)"
        )
