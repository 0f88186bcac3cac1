"""`cnclip-bench gpu-report`: a GPU on one page."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from cnclip_bench._cli._options import OUTPUT, RANDOM, CheckpointOption, OutputOption
from cnclip_bench.subject import FOLDER

_DEMO = Path("examples/demo")


def gpu_report(
    arch: Annotated[
        str | None,
        typer.Option(
            help="The architecture, or a .json file. Default: ViT-B-16 on a GPU, the demo model without one.",
            show_default=False,
        ),
    ] = None,
    checkpoint: CheckpointOption = RANDOM,
    minutes: Annotated[float, typer.Option(min=0.05, help="All steps together; what has no time left is said.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long each thing is measured, at least.")] = 1.0,
    output: OutputOption = OUTPUT,
) -> None:
    """Measure what this machine's GPU does with an architecture, and write one page: encoders, server, features.

    Each step runs in a process of its own and for a bounded time; one that fails is said and passed over. The page and
    a JSON file are written as soon as there is something new. Without a GPU the same steps run on the CPU.
    """
    from cnclip_builder.arch import get_arch
    from cnclip_builder.system.machine import has_gpu

    from cnclip_bench.gpu_report.findings import Findings
    from cnclip_bench.gpu_report.installed import library_folders
    from cnclip_bench.gpu_report.rows import Fact, Row, Setup
    from cnclip_bench.gpu_report.run import Outcome, run_step
    from cnclip_bench.gpu_report.steps import STEPS
    from cnclip_bench.output import conditions

    began, gpu = time.monotonic(), has_gpu()
    if arch is None and not gpu:
        arch, checkpoint = _demo(checkpoint)
    arch = arch or "ViT-B-16"
    if not checkpoint.startswith("random:") and not Path(checkpoint).is_file():
        raise ValueError(f"there is no checkpoint {checkpoint}: name a .pt file, or random:0")
    setup = Setup(arch, checkpoint, gpu, FOLDER / "gpu-report", seconds)
    # All steps find the libraries of pip's wheels, and so do the servers that they start.
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *library_folders()]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(folder for folder in folders if folder)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    machine = "a GPU" if gpu else "this machine's CPU"
    findings = Findings(f"{get_arch(arch).name} on {machine}", setup, conditions())

    def report(row: Row) -> None:
        if isinstance(row, Fact) and row.what == "card 0: name":
            findings.title = findings.title.replace("a GPU", row.value)
        findings.rows.append(row)
        findings.write(output)

    for number, step in enumerate(STEPS, start=1):
        elapsed = time.monotonic() - began
        typer.echo(f"{number} of {len(STEPS)}, after {elapsed:.0f} s: {step.name}", err=True)
        lacking = next((one for one in findings.outcomes if one.name == step.needs and one.status != "done"), None)
        if lacking is not None:
            outcome = Outcome(step.name, "passed over", 0.0, f"it needs what {lacking.name!r} was to make")
        else:
            log = output / "gpu-report" / f"{step.name.replace(' ', '-')}.log"
            outcome = run_step(step, setup, 60 * minutes - elapsed, log, report)
        if outcome.reason:
            typer.echo(f"  {outcome.status}: {outcome.reason}", err=True)
        findings.outcomes.append(outcome)
        findings.write(output)
    page, data = findings.write(output)
    typer.echo(f"{page} and {data}, after {time.monotonic() - began:.0f} s")
    failed = [outcome.name for outcome in findings.outcomes if outcome.status == "failed"]
    if failed:
        raise ValueError(f"{len(failed)} of {len(STEPS)} steps failed: {', '.join(failed)}; {page} says why")


def _demo(checkpoint: str) -> tuple[str, str]:
    """The demo model of the source tree, with its own weights unless others are asked for.

    Raises:
        ValueError: This is not started in the source tree.
    """
    arch = _DEMO / "demo.json"
    if not arch.is_file():
        raise ValueError(f"this machine shows no GPU, and {arch} is not here: name an --arch to measure on the CPU")
    return str(arch), str(_DEMO / "clip_cn_demo.pt") if checkpoint == RANDOM else checkpoint
