"""`cnclip-bench compare`: what is served beside what a user would pick instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnclip_bench._cli._options import (
    OUTPUT,
    RANDOM,
    REPOSITORY,
    ArchOption,
    BatchOption,
    CaptionsOption,
    CheckpointOption,
    ImagesOption,
    ItemsOption,
    NameOption,
    OutputOption,
    RepositoryOption,
    RoundsOption,
)
from cnclip_bench.stats import median_ratio
from cnclip_bench.subject import make_subject, serving


def compare(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    name: NameOption = None,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    items: ItemsOption = 32,
    batch_size: BatchOption = 8,
    rounds: RoundsOption = 4,
    clip_as_service: Annotated[
        Path | None,
        typer.Option(
            help="The Python of an environment with clip-as-service's server: docs/benchmarks.md.", show_default=False
        ),
    ] = None,
    output: OutputOption = OUTPUT,
) -> None:
    """Compare what is served with cn_clip's own loop, with transformers and, where they are installed, with others.

    From encoded images and texts to normalised features, side by side. transformers and infinity get random weights of
    the same sizes. What is not installed or has no such model is named and left out.
    """
    from cnclip_bench import alternatives
    from cnclip_bench.output import show_rows, write

    subject = make_subject(arch, checkpoint, repository, name, images, captions)
    with serving(subject) as (_, client):
        timings, left_out = alternatives.compare(
            subject, client, {"image": items, "text": 4 * items}, rounds, batch_size, clip_as_service
        )
    for tower, found in timings.items():
        count = items if tower == "image" else 4 * items
        rates = {name: [count / one for one in seconds] for name, seconds in found.items()}
        ratios = {name: median_ratio(rates["served"], rate) for name, rate in rates.items() if name != "served"}
        bars = {name: sorted(rate)[len(rate) // 2] for name, rate in rates.items()}
        title = f"{subject.arch.name}, {tower}s a second, encoded {tower}s to features"
        rows = [(name, f"{bars[name]:.2f}", f"{ratios[name]:.2f}" if name in ratios else "") for name in bars]
        rows += [(name, "left out", reason) for name, reason in left_out.items()]
        show_rows(title, ("", f"{tower}s a second", "served: times"), rows)
        figures = {"items": count, "rates": rates, "median_ratios": ratios, "left_out": left_out}
        write(output, f"compare-{tower}", title, figures, bars, "items a second")
