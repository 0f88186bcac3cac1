"""Proves a plan against PyTorch and ONNX Runtime, row by row.

Every profile is tried at its smallest, tuned-for and largest batch and text length.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnclip_builder.errors import ParityError
from cnclip_builder.parity.distance import TOLERANCES, Parity, Tolerance, check_parity
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import PlanJob

if TYPE_CHECKING:
    import numpy.typing as npt

    from cnclip_builder.plans.api import PlanRunner


def read_probes(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads what `graphs.write_plan_sources` wrote: `inputs`, and the features `pytorch` and `onnx`, `[N, D]`."""
    with np.load(path, allow_pickle=False) as probes:
        return {name: probes[name] for name in probes.files}


def check_plan(run: PlanRunner, job: PlanJob, probes: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """Compares a plan with PyTorch and with the ONNX file it was made from.

    Args:
        run: runs the plan.
        job: what it was made for.
        probes: from `read_probes`.

    Returns:
        The worst distances to "pytorch" and to "onnx".

    Raises:
        ParityError: a row is beyond the tolerance; the message names the profile, batch, length and row.
    """
    tolerance = TOLERANCES[job.precision]
    worst: dict[str, Parity] = {}
    for number, profile in enumerate(job.profiles):
        for batch in sorted({profile.batch.min, profile.batch.opt, profile.batch.max}):
            for where, inputs, rows in _cases(profile, probes["inputs"]):
                what = f"{job.plan}, profile {number}, batch {batch}{where}"
                # Whole batches only, so that every row is seen and every batch has the size that it claims.
                order = np.resize(rows, -(-max(len(rows), batch) // batch) * batch)
                outputs = _run_batches(run, number, inputs, order, batch)
                for reference in ("pytorch", "onnx"):
                    expected = probes[reference][order]
                    for parity in _compare(f"{what}, against {reference}", outputs[job.features], expected, tolerance):
                        if reference not in worst or parity.cosine_distance >= worst[reference].cosine_distance:
                            worst[reference] = parity
                if job.normalised:
                    unit = probes["pytorch"][order]
                    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
                    _compare(f"{what}, {job.normalised}", outputs[job.normalised], unit, tolerance)
                    _check_norms(what, outputs[job.normalised])
    return {reference: parity.as_dict() for reference, parity in worst.items()}


def _cases(profile: Profile, inputs: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[np.int64]]]:
    """The inputs at each length, and the rows that fit: texts of no more tokens. Images have one case, all rows."""
    if profile.length is None:
        yield "", inputs, np.arange(len(inputs))
        return
    tokens = np.count_nonzero(inputs, axis=1)
    for length in sorted({profile.length.min, profile.length.opt, profile.length.max}):
        rows = np.flatnonzero(tokens <= length)
        if len(rows):
            padded = np.zeros((len(inputs), length), dtype=inputs.dtype)
            shared = min(length, inputs.shape[1])
            padded[:, :shared] = inputs[:, :shared]
            yield f", length {length}", padded, rows


def _run_batches(
    run: PlanRunner, profile: int, inputs: npt.NDArray[Any], order: npt.NDArray[np.int64], batch: int
) -> dict[str, npt.NDArray[np.float32]]:
    results = [
        run(profile, np.ascontiguousarray(inputs[order[start : start + batch]]))
        for start in range(0, len(order), batch)
    ]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def _compare(
    what: str, features: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], tolerance: Tolerance
) -> list[Parity]:
    if (expected == expected[0]).all():
        # One row many times over: there is no mean to take off.
        return [
            check_parity(f"{what}, row {row}", features[row : row + 1], expected[row : row + 1], tolerance)
            for row in range(len(expected))
        ]
    return [check_parity(what, features, expected, tolerance)]


def _check_norms(what: str, unit: npt.NDArray[np.float32]) -> None:
    norms = np.linalg.norm(unit.astype(np.float64), axis=1)
    if not np.allclose(norms, 1, atol=1e-5):
        raise ParityError(f"{what}: normalised features have norms from {norms.min()} to {norms.max()} instead of 1")
