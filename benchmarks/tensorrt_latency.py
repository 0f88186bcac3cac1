"""Latency at batch 1 and throughput at batch 32 on a GPU: PyTorch eager FP16, torch.compile, and a TensorRT plan.

    python benchmarks/tensorrt_latency.py --arch ViT-B-16 --checkpoint random:0 --output benchmarks/tensorrt_latency.md

All three take what cn_clip's encoders take, on the GPU already, so that only the encoder is measured: float32 images
(or token ids, 52 a text) to float32 features. Times are CUDA events around each run, after warm-up; the median and the
99th percentile are given. It has not been run: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import build_artefacts
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import load_tower
from cnclip_builder.errors import BuildError, MissingRequirementError
from cnclip_builder.parity.distance import TOLERANCES, check_parity
from cnclip_builder.plans.here import PlanSettings, build_plans, require_tensorrt, write_jobs_of
from cnclip_builder.plans.record import PlanJob
from cnclip_builder.tensors import TOWERS, Tower

BATCHES = (1, 32)
CONTEXT_LENGTH = 52

Run = Callable[[torch.Tensor], torch.Tensor]


class PlanRunner:
    """Runs a plan on tensors that are on the GPU, on PyTorch's stream."""

    def __init__(self, plan: Path, job: PlanJob, embedding_size: int) -> None:
        import tensorrt

        self._job, self._size = job, embedding_size
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._context = self._engine.create_execution_context()

    def prepare(self, batch: int) -> None:
        """Takes the profile whose tuned-for batch is nearest, as Triton does."""
        fitting = [number for number, profile in enumerate(self._job.profiles) if batch in profile.batch]
        nearest = min(fitting, key=lambda number: abs(self._job.profiles[number].batch.opt - batch))
        self._context.set_optimization_profile_async(nearest, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Starts a run; its features are ready when PyTorch's stream has got there."""
        features = torch.empty(len(inputs), self._size, device=inputs.device)
        self._context.set_input_shape(self._job.input.name, tuple(inputs.shape))
        self._context.set_tensor_address(self._job.input.name, inputs.data_ptr())
        self._context.set_tensor_address(self._job.features, features.data_ptr())
        self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return features


def time_runs(run: Run, inputs: torch.Tensor, warm_up: int, runs: int) -> list[float]:
    """Milliseconds of each run."""
    for _ in range(warm_up):
        run(inputs)
    torch.cuda.synchronize()
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(runs)]
    for start, end in events:
        start.record()
        run(inputs)
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def make_inputs(arch: Arch, tower: Tower, batch: int) -> torch.Tensor:
    """Random inputs; texts of full length, so that no side saves work on padding."""
    generator = torch.Generator().manual_seed(0)
    if tower == "image":
        return torch.randn(batch, 3, arch.resolution, arch.resolution, generator=generator).cuda()
    ids = torch.randint(670, 7992, (batch, CONTEXT_LENGTH), generator=generator, dtype=torch.int32)
    ids[:, 0], ids[:, -1] = 101, 102
    return ids.cuda()


def half_tower(checkpoint: Any, tower: Tower) -> Run:
    """PyTorch's encoder in FP16, with float32 features."""
    module = load_tower(checkpoint, tower).half().cuda()

    def run(inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            features: torch.Tensor = module(inputs.half() if tower == "image" else inputs.long())
            return features.float()

    return run


def measure(arch: Arch, source: str | None, root: Path, warm_up: int, runs: int) -> list[str]:
    """Builds plans and measures; gives the rows of a Markdown table."""
    made = build_artefacts(
        arch, source, root / "artefacts" / arch.slug, towers=TOWERS, precisions=["fp16"], download_root=root
    )
    settings = PlanSettings(max(BATCHES), CONTEXT_LENGTH)
    jobs = write_jobs_of(made, TOWERS, "fp16", "cn_clip", settings)
    plans = build_plans(jobs, made.items[0].path.parent, settings.options)
    checkpoint = load_checkpoint(made.checkpoint.file.path, arch)
    rows = []
    for tower in TOWERS:
        eager = half_tower(checkpoint, tower)
        plan = PlanRunner(plans[tower].path, jobs[tower], arch.embedding_size)
        ways: dict[str, Run] = {"PyTorch eager": eager, "torch.compile": torch.compile(eager), "TensorRT": plan}
        for batch in BATCHES:
            inputs = make_inputs(arch, tower, batch)
            plan.prepare(batch)
            expected = eager(inputs).cpu().numpy()
            for name, run in ways.items():
                check_parity(f"{name}, {tower}, batch {batch}", run(inputs).cpu().numpy(), expected, TOLERANCES["fp16"])
                times = time_runs(run, inputs, warm_up, runs)
                median, late = np.percentile(times, [50, 99])
                rate = 1e3 * batch / median
                rows.append(f"| {arch.name} {tower} | {batch} | {name} | {median:.3f} | {late:.3f} | {rate:.0f} |")
    return rows


def main() -> None:
    """Prints the table, with hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ViT-B-16")
    parser.add_argument("--checkpoint", help="a .pt file or random:SEED; default: the official checkpoint")
    parser.add_argument("--root", type=Path, default=Path("build/benchmark"), help="where artefacts and plans go")
    parser.add_argument("--warm-up", type=int, default=30)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--output", type=Path, help="a file that the table is appended to")
    options = parser.parse_args()
    try:
        require_tensorrt(get_arch(options.arch), None)
        if not torch.cuda.is_available():
            raise MissingRequirementError("PyTorch sees no GPU: install the build for your CUDA version")
        rows = measure(get_arch(options.arch), options.checkpoint, options.root, options.warm_up, options.runs)
    except BuildError as error:
        sys.exit(f"error: {error}")
    import tensorrt

    table = "\n".join(
        [
            f"{torch.cuda.get_device_name()}, TensorRT {tensorrt.__version__}, PyTorch {torch.__version__}, Python "
            f"{platform.python_version()}, {date.today()}; FP16, {options.runs} runs after {options.warm_up}",
            "",
            "| encoder | batch | by | ms, median | ms, 99 % | rows a second |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(table)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(table + "\n")


if __name__ == "__main__":
    main()
