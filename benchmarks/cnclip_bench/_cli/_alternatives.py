"""`cnclip-bench compare`: what is served beside what a user would pick instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cnclip_builder.tensors import TOWERS
from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, Asked, BatchOption, ItemsOption, OutputOption, RoundsOption, of_a_subject
from cnclip_bench.inputs import count_of
from cnclip_bench.stats import rates_of, served_ratios
from cnclip_bench.subject import serving


@of_a_subject
def compare(
    asked: Asked,
    items: ItemsOption = 32,
    batch_size: BatchOption = 8,
    rounds: RoundsOption = 4,
    clip_as_service: Annotated[
        Path | None, option("The Python of an environment with clip-as-service's server: docs/benchmarks.md.")
    ] = None,
    output: OutputOption = OUTPUT,
) -> None:
    """Compare what is served with cn_clip's own loop, with transformers and, where they are installed, with others.

    From encoded images and texts to normalised features, side by side. transformers and infinity get random weights of
    the same sizes. What is not installed or has no such model is named and left out.

    Example:
      cnclip-bench compare --arch RN50 --batch-size 16
    """
    from cnclip_bench import alternatives
    from cnclip_bench.output import show_ratios

    subject, counts = asked.subject(), {tower: count_of(tower, items) for tower in TOWERS}
    with serving(subject) as (_, client):
        timings, left_out = alternatives.compare(subject, client, counts, rounds, batch_size, clip_as_service)
    for tower, found in timings.items():
        count = counts[tower]
        rates = rates_of(found, count)
        ratios = served_ratios(rates)
        title = f"{subject.arch.name}, {tower}s a second, encoded {tower}s to features"
        figures = {"items": count, "rates": rates, "median_ratios": ratios, "left_out": left_out}
        show_ratios(
            output,
            f"compare-{tower}",
            title,
            rates,
            ratios,
            figures,
            unit=f"{tower}s a second",
            over="served: times",
            left_out=left_out,
            axis="items a second",
        )
