"""The commands that compare encoders, what is served with what runs in process, and preprocessing with cn_clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cnclip_builder.tensors import TOWERS
from cnclip_console import option

from cnclip_bench._cli._options import (
    OUTPUT,
    RANDOM,
    ArchOption,
    Asked,
    BatchOption,
    CaptionsOption,
    ImagesOption,
    ItemsOption,
    OutputOption,
    RoundsOption,
    of_a_subject,
)
from cnclip_bench.inputs import count_of
from cnclip_bench.stats import Latency, median_ratio, rates_of, served_ratios
from cnclip_bench.subject import make_subject, serving


@of_a_subject
def latency(
    asked: Asked, batch_size: BatchOption = 1, rounds: RoundsOption = 20, output: OutputOption = OUTPUT
) -> None:
    """Time a batch in PyTorch, in ONNX Runtime and through the server, as speed_benchmark.py does.

    Example:
      cnclip-bench latency --arch RN50 --batch-size 8
    """
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_latencies, write

    subject = asked.subject()
    with serving(subject) as (_, client):
        for tower in TOWERS:
            timings = comparisons.encoders(subject, tower, batch_size, rounds, client)
            found = [Latency.of(name, seconds) for name, seconds in timings.items()]
            title = f"{subject.arch.name}, {tower}s, batch of {batch_size}"
            show_latencies(title, found)
            bars = {one.name: one.median_ms for one in found}
            write(output, f"latency-{tower}-{batch_size}", f"{title}: median", found, bars, "ms")


@of_a_subject
def served(
    asked: Asked,
    items: ItemsOption = 16,
    batch_size: Annotated[list[int], option("Rows a batch in process; repeatable.", min=1)] = [4, 16],  # noqa: B006
    rounds: RoundsOption = 10,
    output: OutputOption = OUTPUT,
) -> None:
    """Divide the rate of the served ensembles by that of the same sessions in one process.

    On a noisy machine many short rounds tell more than a few long ones.

    Example:
      cnclip-bench served --arch ViT-B-16 --rounds 30
    """
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_ratios

    subject = asked.subject()
    sizes = sorted(set(batch_size))
    with serving(subject) as (_, client):
        for tower in TOWERS:
            count = count_of(tower, items)
            timings = comparisons.served_over_in_process(subject, tower, count, rounds, client, sizes)
            rates = rates_of(timings, count)
            ratios = served_ratios(rates)
            title = f"{subject.arch.name}, {tower}s a second"
            figures = {"items": count, "rates": rates, "median_ratios": ratios}
            show_ratios(
                output,
                f"served-{tower}",
                title,
                rates,
                ratios,
                figures,
                unit=f"{tower}s a second",
                over="served: times",
                decimals=(2, 3),
            )


@of_a_subject
def stages(asked: Asked, items: ItemsOption = 48, output: OutputOption = OUTPUT) -> None:
    """Tell what each step of the ensembles takes of an item, from Triton's own statistics.

    Example:
      cnclip-bench stages --images photos/
    """
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_values, write

    subject = asked.subject()
    with serving(subject) as (server, client):
        for tower in TOWERS:
            count = count_of(tower, items)
            taken = comparisons.stages(subject, tower, count, server.grpc_url, client)
            title = f"{subject.arch.name}, ms {'an image' if tower == 'image' else 'a text'}"
            show_values(title, {name: f"{value:.2f}" for name, value in taken.items()})
            write(output, f"stages-{tower}", title, taken, taken, "ms an item")


def preprocess(
    arch: ArchOption = None, images: ImagesOption = None, rounds: RoundsOption = 5, output: OutputOption = OUTPUT
) -> None:
    """Time decoding and resizing beside cn_clip's transform, and tell what reduced decoding changes.

    Example:
      cnclip-bench preprocess --images photos/
    """
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_values

    subject = make_subject(arch, RANDOM, images=images)
    difference = comparisons.reduced_difference(subject)
    count = max(len(subject.images), 64)
    timings = comparisons.preprocessing(subject, count, rounds)
    _beside_cn_clip("preprocess", "images", timings, count, output, {"reduced_decoding": difference})
    shown = {what: f"{round(value, 2):g}" for what, value in difference.items()}
    show_values("Reduced decoding: grey levels off, of the images that it changes", shown)


def tokenize(captions: CaptionsOption = None, rounds: RoundsOption = 10, output: OutputOption = OUTPUT) -> None:
    """Time tokenising on one core, beside cn_clip's.

    Example:
      cnclip-bench tokenize --captions captions.txt
    """
    from cnclip_bench import comparisons

    subject = make_subject("ViT-B-16", RANDOM, captions=captions)
    _beside_cn_clip("tokenize", "texts", comparisons.tokenizing(subject, 2000, rounds), 2000, output)


def _beside_cn_clip(
    name: str,
    what: str,
    timings: dict[str, list[float]],
    count: int,
    output: Path,
    more: Mapping[str, object] | None = None,
) -> None:
    from cnclip_bench.output import show_ratios

    rates = rates_of(timings, count)
    ratios = {who: median_ratio(rate, rates["cn_clip"]) for who, rate in rates.items()}
    figures = {"rates": rates, "median_ratios": ratios, **(more or {})}
    title, unit = f"{name}: {what} a second", f"{what} a second"
    show_ratios(output, name, title, rates, ratios, figures, unit=unit, decimals=(0, 2))
