"""`cnclip-bench build`, `startup` and `memory`: what building and serving cost, and how that grows."""

from __future__ import annotations

from statistics import median
from typing import Annotated

from cnclip_builder.tensors import TOWERS
from cnclip_console import option

from cnclip_bench._cli._options import (
    OUTPUT,
    RANDOM,
    REPOSITORY,
    ArchOption,
    CheckpointOption,
    NameOption,
    OutputOption,
    RepositoryOption,
    RoundsOption,
)
from cnclip_bench.subject import make_subject

ArchsOption = Annotated[list[str], option("The architecture; repeatable.", "--arch", panel="What is measured")]

SizesOption = Annotated[list[int], option("Most rows of a request; repeatable.", min=1)]

_FEW = ["RN50", "ViT-B-16"]
_SIZES = [1, 8, 16, 32]


def build(archs: ArchsOption = _FEW, checkpoint: CheckpointOption = RANDOM, output: OutputOption = OUTPUT) -> None:
    """Build checkpoints by `make repo` and by cn_clip's pytorch_to_onnx.py: seconds, and memory of all processes.

    Example:
      cnclip-bench build --arch RN50 --arch ViT-B-16
    """
    from cnclip_bench.costs import build_costs
    from cnclip_bench.output import Panel, show_rows, write_curves

    found = [one for arch in archs for one in build_costs(arch, checkpoint)]
    rows = [
        (one.arch, one.what, *((f"{one.seconds:.0f}", f"{one.peak_mib:.0f}") if not one.problem else (one.problem, "")))
        for one in found
    ]
    show_rows("Building FP32 and FP16 of both encoders", ("arch", "by", "seconds", "MiB at most"), rows)
    done = [one for one in found if not one.problem]
    panels = [
        Panel(
            "MiB of weights in FP32",
            axis,
            {
                what: sorted((one.weights_mib, getattr(one, field)) for one in done if one.what == what)
                for what in dict.fromkeys(one.what for one in done)
            },
        )
        for axis, field in (("seconds", "seconds"), ("MiB at most, of all processes", "peak_mib"))
    ]
    write_curves(output, "build", f"Building {', '.join(archs)}", found, panels)


def startup(
    archs: ArchsOption = _FEW,
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    rounds: RoundsOption = 3,
    output: OutputOption = OUTPUT,
) -> None:
    """Tell how long a server takes until it is ready, and what memory it holds then, by the architecture.

    Example:
      cnclip-bench startup --arch RN50 --rounds 5
    """
    from cnclip_bench.costs import start_up
    from cnclip_bench.output import Panel, show_rows, write_curves

    found = [start_up(make_subject(arch, checkpoint, repository), rounds) for arch in archs]
    medians = [median(one.seconds) for one in found]
    rows = [
        (one.arch, f"{one.weights_mib:.0f}", f"{middle:.1f}", f"{one.idle_mib:.0f}")
        for one, middle in zip(found, medians, strict=True)
    ]
    show_rows("Until a server is ready", ("arch", "MiB of weights", "seconds", "MiB of memory"), rows)
    panels = [
        Panel(
            "MiB of weights",
            "seconds until ready",
            {"start": sorted((one.weights_mib, middle) for one, middle in zip(found, medians, strict=True))},
        ),
        Panel("MiB of weights", "MiB of memory", {"idle": sorted((one.weights_mib, one.idle_mib) for one in found)}),
    ]
    write_curves(output, "startup", f"Starting a server of {', '.join(archs)}", found, panels)


def memory(
    arch: ArchOption = None,
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    name: NameOption = None,
    max_batch_size: SizesOption = _SIZES,
    output: OutputOption = OUTPUT,
) -> None:
    """Tell a server's memory once it has answered the largest request that it takes, by the size of that.

    Example:
      cnclip-bench memory --arch ViT-B-16 --max-batch-size 32
    """
    from cnclip_bench.costs import footprints
    from cnclip_bench.output import Panel, show_rows, write_curves

    subject = make_subject(arch, checkpoint, repository, name=name)
    found = {tower: footprints(subject, tower, sorted(set(max_batch_size))) for tower in TOWERS}
    for tower, ones in found.items():
        rows = [(str(one.max_batch_size), f"{one.idle_mib:.0f}", f"{one.peak_mib:.0f}") for one in ones]
        show_rows(f"{subject.arch.name}, {tower}s", ("max batch size", "MiB idle", "MiB at most"), rows)
    curves: dict[str, list[tuple[float, float]]] = {
        tower: [(one.max_batch_size, one.peak_mib) for one in ones] for tower, ones in found.items()
    }
    panels = [Panel("max batch size", "MiB at most, of all processes", curves)]
    write_curves(output, "memory", f"{subject.arch.name}: memory of a server", found, panels)
