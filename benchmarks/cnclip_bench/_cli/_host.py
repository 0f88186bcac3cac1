"""`cnclip-bench host`: how decoding fills the cores."""

from __future__ import annotations

from typing import Annotated

from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, RANDOM, ArchOption, ImagesOption, OutputOption, RoundsOption
from cnclip_bench.subject import make_subject


def host(
    arch: ArchOption = None,
    images: ImagesOption = None,
    workers: Annotated[
        list[int] | None,
        option("Threads of all processes together, several times. Default: 1, 2, 4 ... all cores.", min=1),
    ] = None,
    seconds: Annotated[float, option("How long one worker is busy in a round.")] = 0.5,
    rounds: RoundsOption = 7,
    output: OutputOption = OUTPUT,
) -> None:
    """Time decoding and resizing on 1 to all cores, by threads, by processes and by both, as parts of linear.

    Example:
      cnclip-bench host --images photos/
    """
    from cnclip_machine import usable_cores
    from cnclip_pixels import resizer

    from cnclip_bench.host import fill_cores, worker_counts
    from cnclip_bench.output import Panel, show_rows, write_curves

    subject = make_subject(arch, RANDOM, images=images)
    counts = sorted(set(workers)) if workers else worker_counts(usable_cores())
    found = fill_cores(subject.images, subject.arch.resolution, counts, seconds, rounds)
    title = f"{subject.arch.name}, images decoded and resized"
    rows = [(str(one.workers), one.way, f"{one.images_per_s:.0f}", f"{one.of_linear:.2f}") for one in found]
    show_rows(title, ("workers", "as", "images a second", "of linear"), rows)
    ways = dict.fromkeys(one.way for one in found[1:]) or {"threads": None}
    first = (1, found[0].images_per_s)
    rates = {way: [first, *((one.workers, one.images_per_s) for one in found[1:] if one.way == way)] for way in ways}
    shares = {way: [(1, 1.0), *((one.workers, one.of_linear) for one in found[1:] if one.way == way)] for way in ways}
    panels = [Panel("workers", "images a second", rates), Panel("workers", "of linear", shares)]
    write_curves(output, "host", title, {"resizer": resizer(), "measured": found}, panels)
