"""`cnclip-bench gpu-report`: a GPU on one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, RANDOM, CheckpointOption, OutputOption
from cnclip_bench.subject import FOLDER

_DEMO = Path("examples/demo")


def gpu_report(
    arch: Annotated[
        str | None,
        option(
            "The architecture, or a .json file. Default: the checkpoint's; of random weights ViT-B-16 on a GPU, "
            "the demo model without one."
        ),
    ] = None,
    checkpoint: CheckpointOption = RANDOM,
    minutes: Annotated[float, option("All steps together; what has no time left is said.", min=0.05)] = 10.0,
    seconds: Annotated[float, option("How long each thing is measured, at least.", min=0.01)] = 1.0,
    output: OutputOption = OUTPUT,
) -> None:
    """Measure what this machine's GPU does with an architecture, and write one page: encoders, server, features.

    Each step runs in a process of its own and for a bounded time; one that fails is said and passed over. The page and
    a JSON file are written as soon as there is something new. Without a GPU the same steps run on the CPU.

    Example:
      cnclip-bench gpu-report --arch ViT-B-16 --minutes 10
    """
    from cnclip_builder.arch import get_arch
    from cnclip_builder.system.gpu import has_gpu

    from cnclip_bench.gpu_report.measure import measure
    from cnclip_bench.gpu_report.rows import Setup
    from cnclip_bench.subject import arch_option

    gpu = has_gpu()
    if arch is None and not gpu and checkpoint.startswith("random:"):
        arch, checkpoint = _demo(checkpoint)
    if not checkpoint.startswith(("random:", "hf:")) and not Path(checkpoint).exists():
        raise ValueError(f"there is no checkpoint {checkpoint}: name a .pt file, or random:0")
    option = arch_option(arch, checkpoint, None)
    chosen = get_arch(option)
    setup = Setup(option, checkpoint, gpu, FOLDER / "gpu-report", seconds)
    findings = measure(setup, chosen.name, 60 * minutes, output, partial(typer.echo, err=True))
    page, data = findings.write(output)
    typer.echo(f"{page} and {data}")
    if failed := [outcome.name for outcome in findings.outcomes if outcome.status == "failed"]:
        raise ValueError(
            f"{len(failed)} of {len(findings.outcomes)} steps failed: {', '.join(failed)}; {page} says why"
        )


def _demo(checkpoint: str) -> tuple[str, str]:
    """The demo model of the source tree, with its own weights unless others are asked for.

    Raises:
        ValueError: This is not started in the source tree.
    """
    arch = _DEMO / "demo.json"
    if not arch.is_file():
        raise ValueError(f"this machine shows no GPU, and {arch} is not here: name an --arch to measure on the CPU")
    return str(arch), str(_DEMO / "clip_cn_demo.pt") if checkpoint == RANDOM else checkpoint
