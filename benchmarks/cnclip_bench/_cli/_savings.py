"""`cnclip-bench savings` and `int8`: what encoders need not compute, and what they may compute coarsely."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from cnclip_builder.tensors import TOWERS
from cnclip_console import option

from cnclip_bench._cli._options import (
    OUTPUT,
    RANDOM,
    ArchOption,
    Asked,
    CaptionsOption,
    CheckpointOption,
    ImagesOption,
    OutputOption,
    RoundsOption,
    of_a_subject,
)
from cnclip_bench.inputs import count_of
from cnclip_bench.stats import median_ratio
from cnclip_bench.subject import make_subject

if TYPE_CHECKING:
    from cnclip_bench.comparisons import Timings

_SIZES: dict[str, list[int]] = {"image": [1, 4, 16], "text": [1, 4, 16, 32]}


@of_a_subject
def savings(asked: Asked, rounds: RoundsOption = 5, output: OutputOption = OUTPUT) -> None:
    """Tell what is saved by leaving out padding and most of the last block, and by batches of the right size.

    Example:
      cnclip-bench savings --arch ViT-B-16
    """
    from cnclip_bench import savings as measured
    from cnclip_bench.output import Panel, show_rows, write_curves

    subject = asked.subject(served=False)
    arch_name = subject.arch.name
    if measured.has_padded_encoder(subject):
        _show("savings-padding", f"{arch_name}, 16 texts", measured.padding(subject, 16, rounds), 16, output)
    else:
        typer.echo(
            "Padding is left out: it needs the ONNX files that are built where no --repository is named, and a server "
            "on the CPU, where they run."
        )
    for tower in TOWERS:
        timings = measured.last_block(subject, tower, 4, rounds)
        _show(f"savings-last-block-{tower}", f"{arch_name}, 4 {tower}s in PyTorch", timings, 4, output)
    curves, figures = {}, {}
    for tower in TOWERS:
        items = count_of(tower, 16)
        timings = measured.batch_sizes(subject, tower, _SIZES[tower], items, rounds)
        figures[tower] = {size: [1000 * one / items for one in seconds] for size, seconds in timings.items()}
        curves[tower] = [(int(size), median(ms)) for size, ms in figures[tower].items()]
        title = f"{arch_name}, {tower}s in the served encoder's session"
        show_rows(title, ("batch", f"ms {_a(tower)}"), [(str(size), f"{ms:.1f}") for size, ms in curves[tower]])
    panels = [Panel("batch", f"ms {_a(tower)}", {tower: points}) for tower, points in curves.items()]
    write_curves(output, "savings-batches", f"{arch_name}, by the batch", figures, panels)


def int8(
    arch: ArchOption = None,
    checkpoint: CheckpointOption = RANDOM,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    pairs: Annotated[Path | None, option("A TSV of image files and captions, to tell recall as well.")] = None,
    rounds: RoundsOption = 7,
    output: OutputOption = OUTPUT,
) -> None:
    """Build both encoders in INT8 beside FP32: speed, size, how far features go, and recall.

    Images and captions should be none that a build calibrates on, which are the default of the other commands.

    Example:
      cnclip-bench int8 --arch ViT-B-16 --checkpoint epoch_latest.pt
    """
    from dataclasses import asdict, replace

    from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP

    from cnclip_bench import int8 as measured
    from cnclip_bench.output import show_values, write

    subject = make_subject(arch, checkpoint, images=images, captions=captions)
    found = measured.read_pairs(pairs) if pairs else []
    if found:
        subject = replace(subject, images=[one.image for one in found], texts=[one.caption for one in found])
    artefacts = measured.make_artefacts(subject, checkpoint)
    for tower in TOWERS:
        one = measured.compare(subject, artefacts, tower, rounds)
        refused = "; refused: this encoder is served in FP32" if one.build_speed_up < LEAST_INT8_SPEED_UP else ""
        title = f"{subject.arch.name}, {tower} encoder in INT8"
        show_values(
            title,
            {
                "times FP32's speed, all cores": f"{one.speed_up:.2f}",
                "the same on one thread, in the build": f"{one.build_speed_up:.2f}{refused}",
                "products left in FP32": f"{one.kept_in_fp32} of {one.products}",
                f"1 - cosine, worst of {one.rows} rows": f"{one.cosine_distance:.1e}",
                "the same, centred": f"{one.centred_worst:.1e}, median {one.centred_median:.1e}",
                "MB of weights": f"{one.megabytes[0]:.0f} in FP32, {one.megabytes[1]:.0f} in INT8",
            },
        )
        write(output, f"int8-{tower}", title, asdict(one), {"FP32": 1.0, "INT8": one.speed_up}, "times FP32's speed")
    if found:
        recalls = measured.recalls(subject, artefacts, found)
        title = f"{subject.arch.name}, recall of {len(found)} pairs"
        show_values(
            title, {f"{name}, {p}": f"{value:.1%}" for p, values in recalls.items() for name, value in values.items()}
        )
        bars = {f"{name}, {p}": 100 * value for p, values in recalls.items() for name, value in values.items()}
        write(output, "int8-recall", title, recalls, bars, "%")


def _show(name: str, title: str, timings: Timings, items: int, output: Path) -> None:
    """Shows milliseconds an item, and how many times the first way's speed each other reaches."""
    from cnclip_bench.output import show_ratios

    first, *_ = timings.values()
    ms = {way: [1000 * one / items for one in seconds] for way, seconds in timings.items()}
    ratios = {way: median_ratio(first, seconds) for way, seconds in timings.items()}
    figures = {"seconds": timings, "items": items, "median_ratios": ratios}
    show_ratios(output, name, title, ms, ratios, figures, unit="ms an item", decimals=(1, 2))


def _a(tower: str) -> str:
    return "an image" if tower == "image" else "a text"
