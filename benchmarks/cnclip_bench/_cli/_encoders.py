"""The commands that compare encoders, what is served with what runs in process, and preprocessing with cn_clip."""

from __future__ import annotations

from pathlib import Path

from cnclip_bench._cli._options import (
    OUTPUT,
    RANDOM,
    REPOSITORY,
    TOWERS,
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
from cnclip_bench.stats import Latency, median_ratio
from cnclip_bench.subject import make_subject, serving


def latency(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    name: NameOption = None,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    batch_size: BatchOption = 1,
    rounds: RoundsOption = 20,
    output: OutputOption = OUTPUT,
) -> None:
    """Time a batch in PyTorch, in ONNX Runtime and through the server, as speed_benchmark.py does."""
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_latencies, write

    subject = make_subject(arch, checkpoint, repository, name, images, captions)
    with serving(subject) as (_, client):
        for tower in TOWERS:
            timings = comparisons.encoders(subject, tower, batch_size, rounds, client)
            found = [Latency.of(name, seconds) for name, seconds in timings.items()]
            title = f"{subject.arch.name}, {tower}s, batch of {batch_size}"
            show_latencies(title, found)
            bars = {one.name: one.median_ms for one in found}
            write(output, f"latency-{tower}-{batch_size}", f"{title}: median", found, bars, "ms")


def served(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    name: NameOption = None,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    items: ItemsOption = 48,
    batch_size: BatchOption = 8,
    rounds: RoundsOption = 6,
    output: OutputOption = OUTPUT,
) -> None:
    """Divide the rate of the served ensembles by that of the same sessions in one process."""
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_values, write

    subject = make_subject(arch, checkpoint, repository, name, images, captions)
    with serving(subject) as (_, client):
        for tower in TOWERS:
            count = items if tower == "image" else 4 * items
            timings = comparisons.served_over_in_process(subject, tower, count, rounds, client, batch_size)
            rates = {name: [count / one for one in seconds] for name, seconds in timings.items()}
            ratio = median_ratio(rates["served"], rates["in process"])
            title = f"{subject.arch.name}, {tower}s a second"
            shown = {name: f"{sorted(rate)[len(rate) // 2]:.2f}" for name, rate in rates.items()}
            show_values(title, {**shown, "served / in process, median of rounds": f"{ratio:.3f}"})
            bars = {name: sorted(rate)[len(rate) // 2] for name, rate in rates.items()}
            figures = {"items": count, "rates": rates, "median_ratio": ratio}
            write(
                output, f"served-{tower}", f"{title}; served / in process {ratio:.3f}", figures, bars, "items a second"
            )


def stages(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = RANDOM,
    repository: RepositoryOption = REPOSITORY,
    name: NameOption = None,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    items: ItemsOption = 48,
    output: OutputOption = OUTPUT,
) -> None:
    """Tell what each step of the ensembles takes of an item, from Triton's own statistics."""
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_values, write

    subject = make_subject(arch, checkpoint, repository, name, images, captions)
    with serving(subject) as (url, client):
        for tower in TOWERS:
            count = items if tower == "image" else 4 * items
            taken = comparisons.stages(subject, tower, count, url, client)
            title = f"{subject.arch.name}, ms {'an image' if tower == 'image' else 'a text'}"
            show_values(title, {name: f"{value:.2f}" for name, value in taken.items()})
            write(output, f"stages-{tower}", title, taken, taken, "ms an item")


def preprocess(
    arch: ArchOption = "ViT-B-16",
    images: ImagesOption = None,
    rounds: RoundsOption = 10,
    output: OutputOption = OUTPUT,
) -> None:
    """Time decoding and resizing on one core, beside cn_clip's transform."""
    from cnclip_bench import comparisons

    subject = make_subject(arch, RANDOM, None, None, images, None)
    _beside_cn_clip("preprocess", "images", comparisons.preprocessing(subject, rounds), len(subject.images), output)


def tokenize(
    captions: CaptionsOption = None,
    rounds: RoundsOption = 10,
    output: OutputOption = OUTPUT,
) -> None:
    """Time tokenising on one core, beside cn_clip's."""
    from cnclip_bench import comparisons

    subject = make_subject("ViT-B-16", RANDOM, None, None, None, captions)
    _beside_cn_clip("tokenize", "texts", comparisons.tokenizing(subject, rounds, 2000), 2000, output)


def _beside_cn_clip(name: str, what: str, timings: dict[str, list[float]], count: int, output: Path) -> None:
    from cnclip_bench.output import show_values, write

    rates = {who: [count / one for one in seconds] for who, seconds in timings.items()}
    ratio = median_ratio(rates["served"], rates["cn_clip"])
    bars = {who: sorted(rate)[len(rate) // 2] for who, rate in rates.items()}
    title = f"{name}: {what} a second on one core"
    show_values(title, {**{who: f"{rate:.0f}" for who, rate in bars.items()}, "served / cn_clip": f"{ratio:.2f}"})
    write(output, name, title, {"rates": rates, "median_ratio": ratio}, bars, f"{what} a second")
