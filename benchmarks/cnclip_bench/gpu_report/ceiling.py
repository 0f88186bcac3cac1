"""The card's own ceiling, and what an encoder has to compute."""

from __future__ import annotations

from cnclip_bench.gpu_report.inputs import LENGTHS
from cnclip_bench.gpu_report.rows import Ceiling, Report, Setup, Work
from cnclip_bench.gpu_report.timing import time_runs

__all__ = ["measure_ceiling"]

_SIDES = {True: 8192, False: 1024}


def measure_ceiling(setup: Setup, report: Report) -> None:
    """Times a square matrix product by torch, FP16 on a GPU and FP32 on a CPU, and counts the encoders' operations."""
    import torch

    side, dtype = _SIDES[setup.gpu], torch.float16 if setup.gpu else torch.float32
    device = "cuda" if setup.gpu else "cpu"
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    # Many at a time: a wait for each would count.
    products = 10 if setup.gpu else 1

    def multiply() -> None:
        for _ in range(products):
            torch.mm(one, other)
        if setup.gpu:
            torch.cuda.synchronize()

    _, ms = time_runs(multiply, setup.seconds)
    report(Ceiling(side, str(dtype).removeprefix("torch."), products * 2 * side**3 / ms / 1e9))
    for work in _count(setup.arch):
        report(work)


def _count(arch: str) -> list[Work]:
    """Counts with torch's own counter, on a model without storage."""
    import torch
    from cnclip_builder.arch import get_arch
    from cnclip_builder.checkpoint.load import make_meta_model
    from torch.utils.flop_counter import FlopCounterMode

    chosen = get_arch(arch)
    model = make_meta_model(chosen)
    counted = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model.encode_image(torch.empty(1, 3, chosen.resolution, chosen.resolution, device="meta"))  # type: ignore[operator]
        counted.append(Work("image", 0, counter.get_total_flops() / 1e9))
        for length in LENGTHS:
            with FlopCounterMode(display=False) as counter:
                model.encode_text(torch.empty(1, length, dtype=torch.long, device="meta"))  # type: ignore[operator]
            counted.append(Work("text", length, counter.get_total_flops() / 1e9))
    return counted
