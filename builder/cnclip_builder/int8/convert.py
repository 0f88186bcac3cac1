"""From ONNX in FP32 to INT8 for a CPU: as many matrix products as the tolerance lets, the others in FP32."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cnclip_builder.errors import ParityError, SlowerError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.check import open_session
from cnclip_builder.int8.calibration import calibration_inputs, collect_activations, run_each
from cnclip_builder.int8.graph import Product, find_products, read_weight, write_int8
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP, Int8Report
from cnclip_builder.int8.weights import Int8Weight, fit, round_to_nearest
from cnclip_builder.parity.distance import TOLERANCES, Parity, Tolerance, measure_parity
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.tensors import Tower

logger = logging.getLogger(__name__)

_TIMED_ROUNDS = 7
_TIMED_INPUTS: dict[Tower, int] = {"image": 1, "text": 8}


def convert_to_int8(
    artefact: Artefact,
    int8: Path,
    *,
    least_speed_up: float = LEAST_INT8_SPEED_UP,
    tolerance: Tolerance = TOLERANCES["int8"],
) -> Int8Report:
    """Writes the INT8 twin of an FP32 model.

    Args:
        artefact: the FP32 encoder.
        int8: the .onnx file to write; its weights go beside it.
        least_speed_up: how many times FP32's speed it must reach.
        tolerance: how far the features of the samples and the probes may be from FP32's.

    Raises:
        SlowerError: it does not reach that speed.
        ParityError: the tolerance would not hold with a single product in INT8.
    """
    fp32, arch, tower = artefact.path, artefact.arch, artefact.tower
    model = onnx.load(fp32, load_external_data=False)
    products = find_products(model)
    inputs = calibration_inputs(arch, tower)
    # Any rounding has the same speed, so that a refusal need not wait for the best one.
    write_int8(fp32, int8, {item.node: round_to_nearest(read_weight(model, item, fp32.parent)) for item in products})
    timed = inputs[: _TIMED_INPUTS[tower]]
    speed_up = measure_speed_up(fp32, int8, timed)
    require_speed_up(int8.name, speed_up, least_speed_up)
    logger.info("Fitting %d matrix products of the %s encoder to INT8", len(products), tower)
    weights = _fit_all(model, fp32, products, inputs)
    checked = [*inputs, *(row[None] for row in make_probes(arch).inputs(tower))]
    reference = run_each(fp32, checked)

    def parity_with(kept: tuple[str, ...]) -> Parity:
        write_int8(fp32, int8, {node: weight for node, weight in weights.items() if node not in kept})
        return _worst(run_each(int8, checked), reference, len(inputs))

    kept, parity = _keep_as_few_as_hold(_most_harm_first(products, weights), parity_with, tolerance, int8.name)
    smoothed = sum(weights[item.node].smoothing is not None for item in products if item.node not in kept)
    if kept or smoothed:
        what = f"{int8.name} with {len(kept)} of {len(products)} products in FP32 and {smoothed} smoothed"
        logger.info("Made %s", what)
        speed_up = measure_speed_up(fp32, int8, timed)
        require_speed_up(what, speed_up, least_speed_up)
    return Int8Report(len(products), kept, smoothed, speed_up, parity)


def _fit_all(
    model: onnx.ModelProto, fp32: Path, products: list[Product], inputs: list[npt.NDArray[Any]]
) -> dict[str, Int8Weight]:
    activations = collect_activations(fp32, sorted({item.activations for item in products}), inputs)
    return {item.node: fit(read_weight(model, item, fp32.parent), activations[item.activations]) for item in products}


def _most_harm_first(products: list[Product], weights: dict[str, Int8Weight]) -> list[str]:
    """Orders products by the squared error that they bring for the time that they save.

    A product's own error says little of what becomes of it by the end of the encoder, but it is had for nothing and
    finds the outliers; how many are kept is then decided by the features themselves.
    """
    return [
        item.node
        for item in sorted(products, key=lambda item: (-(weights[item.node].error ** 2) / item.size, item.node))
    ]


def _keep_as_few_as_hold(
    order: list[str], parity_with: Callable[[tuple[str, ...]], Parity], tolerance: Tolerance, name: str
) -> tuple[tuple[str, ...], Parity]:
    """Finds the shortest beginning of `order` that must stay in FP32, by doubling and then halving.

    Returns:
        Those nodes, and the parity with them, which was measured last.
    """
    first = parity = parity_with(())
    too_few, enough = -1, 0
    while not parity.within(tolerance):
        if enough >= len(order) - 1:
            raise ParityError(
                f"{name}: features are off by 1 - cosine = {first.cosine_distance:.2e} (at most "
                f"{tolerance.cosine_distance:.0e} passes), {first.centred_distance:.2e} after centring (at most "
                f"{tolerance.centred_distance:.0e}), and no choice of products to keep in FP32 mends that: choose "
                "PRECISION=fp32"
            )
        too_few, enough = enough, min(max(1, 2 * enough), len(order) - 1)
        parity = parity_with(tuple(order[:enough]))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if parity_with(tuple(order[:middle])).within(tolerance):
            enough = middle
        else:
            too_few = middle
    kept = tuple(order[:enough])
    return kept, parity_with(kept) if kept else first


def _worst(features: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], samples: int) -> Parity:
    """Samples and probes are centred apart: real inputs and made ones have little in common to be taken off."""
    parts = [
        measure_parity(features[part], reference[part]) for part in (slice(0, samples), slice(samples, len(features)))
    ]
    worst = max(parts, key=lambda parity: parity.centred_distance)
    return replace(
        worst,
        rows=len(features),
        cosine_distance=max(parity.cosine_distance for parity in parts),
        absolute_difference=max(parity.absolute_difference for parity in parts),
    )


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
    for _ in range(1 + _TIMED_ROUNDS):  # the first warms up; it can't be the shortest by luck
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
