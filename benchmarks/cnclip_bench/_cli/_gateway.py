"""`cnclip-bench gateway`: what HTTP in front of the client takes."""

from __future__ import annotations

from typing import Annotated

import typer
from cnclip_builder.tensors import TOWERS
from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, Asked, OutputOption, RoundsOption, TowerOption, of_a_subject
from cnclip_bench.subject import serving


@of_a_subject
def gateway(
    asked: Asked,
    tower: TowerOption = None,
    concurrency: Annotated[int, option("Requests at once, of one item each.", min=1)] = 64,
    seconds: Annotated[float, option("How long a load is kept up in a round, at least.", min=0.1)] = 5.0,
    rounds: RoundsOption = 3,
    singles: Annotated[int, option("Requests that are sent with nothing beside them.", min=1)] = 200,
    output: OutputOption = OUTPUT,
) -> None:
    """Compare single items through cnclip-gateway with the client's own: the rate of many at once, and one alone.

    Example:
      cnclip-bench gateway --arch ViT-B-16
    """
    from cnclip_bench.gateway import WAYS, compare, running
    from cnclip_bench.output import show_latencies, show_ratios

    subject = asked.subject()
    with serving(subject) as (server, client), running(server.grpc_url, subject.name) as port:
        for one in [tower] if tower else TOWERS:
            found = compare(port, client, subject.name, one, subject.items(one), concurrency, seconds, rounds, singles)
            title = f"{subject.arch.name}, single {one}s, {concurrency} at once"
            show_ratios(
                output,
                f"gateway-{one}",
                title,
                found.items_per_s,
                {"gateway": found.ratio},
                found,
                unit=f"{one}s a second",
                over="times the client's",
            )
            show_latencies(f"{subject.arch.name}, one {one} at a time", [found.alone[way] for way in WAYS])
            typer.echo(f"added: median {found.added_median_ms:.2f} ms, p99 {found.added_p99_ms:.2f} ms")
