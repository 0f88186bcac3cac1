"""`cnclip-bench preparation`: the server prepares, or its clients do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from cnclip_builder.tensors import TOWERS
from cnclip_console import option

from cnclip_bench._cli._options import (
    OUTPUT,
    Asked,
    ItemsOption,
    OutputOption,
    RoundsOption,
    TowerOption,
    of_a_subject,
)


@of_a_subject
def preparation(
    asked: Asked,
    tower: TowerOption = None,
    items: ItemsOption = 64,
    rounds: RoundsOption = 5,
    preparers: Annotated[
        int | None, option("Processes of the client that prepare images. Default: one a core.", metavar="N")
    ] = None,
    output: OutputOption = OUTPUT,
) -> None:
    """Have the server prepare images and texts, and a client of it, in turns: items a second, and processors' time.

    Client and server share this machine, and its cores. The server's time is its encoder's too: give a small model to
    see what the rest takes.

    Example:
      cnclip-bench preparation --arch RN50 --images photos/
    """
    from cnclip_bench.output import show_rows, write
    from cnclip_bench.preparation import medians, side_by_side

    subject = asked.subject()
    towers = [tower] if tower else list(TOWERS)
    found = side_by_side(subject, towers, items, rounds, preparers)
    for one in towers:
        middle, ratios = medians(found[one])
        title = f"{subject.arch.name}, {one}s prepared by server or client"
        rows = [
            (by, f"{told.items_per_s:.0f}", f"{told.server_ms:.2f}", f"{told.client_ms:.2f}")
            for by, told in middle.items()
        ]
        rows.append(("times", f"{ratios.items_per_s:.2f}", f"{ratios.server_ms:.2f}", f"{ratios.client_ms:.2f}"))
        show_rows(title, ("prepared by", f"{one}s a second", "server ms", "client ms"), rows)
        figures = {by: [asdict(told) for told in found[one][by]] for by in middle}
        bars = {f"the server's, prepared by the {by}": told.server_ms for by, told in middle.items()}
        bars |= {f"the client's, prepared by the {by}": told.client_ms for by, told in middle.items()}
        write(output, f"preparation-{one}", title, figures, bars, "ms of processors")
    typer.echo("ms are of processors, an item; times: the client's over the server's, medians of the rounds")
