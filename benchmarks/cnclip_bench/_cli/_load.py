"""`cnclip-bench throughput` and `tune`: the server under load, as it is and as it could be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cnclip_builder.tensors import TOWERS, Tower
from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, Asked, OutputOption, RoundsOption, TowerOption, of_a_subject
from cnclip_bench.subject import Subject, serving

if TYPE_CHECKING:
    from cnclip_bench.serving_settings import Settings
    from cnclip_bench.tuning import Comparison, Served

SecondsOption = Annotated[float, option("How long a load is kept up in a round, at least.", min=0.1)]


@of_a_subject
def throughput(
    asked: Asked,
    concurrency: Annotated[list[int], option("Requests at once; repeatable.", min=1)] = [1, 2, 4],  # noqa: B006
    batch_size: Annotated[list[int], option("Items a request; repeatable.", min=1)] = [1, 8],  # noqa: B006
    seconds: SecondsOption = 3.0,
    rounds: RoundsOption = 2,
    output: OutputOption = OUTPUT,
) -> None:
    """Put the ensembles under load: items a second and latency percentiles by concurrency and batch size.

    Example:
      cnclip-bench throughput --concurrency 1 --concurrency 8 --batch-size 8
    """
    from cnclip_bench.load import measure_levels
    from cnclip_bench.output import Panel, show_rows, write_curves
    from cnclip_bench.requests import to_ensemble

    subject = asked.subject()
    levels = [(one, size) for size in sorted(set(batch_size)) for one in sorted(set(concurrency))]
    with serving(subject) as (_, client):
        most = client.info.max_batch_size
        if max(batch_size) > most:
            raise ValueError(f"{subject.name} takes requests of up to {most} items: choose a --batch-size up to that")
        for tower in TOWERS:
            found = measure_levels(partial(to_ensemble, client, tower, subject.items(tower)), levels, seconds, rounds)
            title = f"{subject.arch.name}, {tower}s under load"
            rows = [
                (
                    str(one.concurrency),
                    str(one.batch_size),
                    f"{one.items_per_s:.2f}",
                    *(f"{ms:.1f}" for ms in (one.latency.median_ms, one.latency.p95_ms, one.latency.p99_ms)),
                )
                for one in found
            ]
            show_rows(title, ("requests at once", "batch", f"{tower}s a second", "median ms", "p95", "p99"), rows)
            sizes = sorted(set(batch_size))
            of_sizes = {f"batch {size}": [one for one in found if one.batch_size == size] for size in sizes}
            rates = {size: [(one.concurrency, one.items_per_s) for one in ones] for size, ones in of_sizes.items()}
            waits = {size: [(one.concurrency, one.latency.p95_ms) for one in ones] for size, ones in of_sizes.items()}
            panels = [
                Panel("requests at once", f"{tower}s a second", rates),
                Panel("requests at once", "95th percentile of latency, ms", waits),
            ]
            write_curves(output, f"throughput-{tower}", title, found, panels)


@of_a_subject
def tune(
    asked: Asked,
    tower: TowerOption = None,
    concurrency: Annotated[int, option("Requests at once, as your clients send them.", min=1)] = 4,
    batch_size: Annotated[
        int | None, option("Items a request, as your clients send them. Default: as ours does.", min=1)
    ] = None,
    min_gain: Annotated[float, option("What is worth a change: 0.03 is 3 % more items.", min=0.0)] = 0.03,
    max_latency_ms: Annotated[float | None, option("Bound of the 95th percentile of requests.")] = None,
    seconds: SecondsOption = 4.0,
    rounds: RoundsOption = 5,
    dry_run: Annotated[bool, option("Only tell; change no config.", "--dry-run")] = False,
    output: OutputOption = OUTPUT,
) -> None:
    """Find instances, threads, batch size and queue delay that serve faster here, and write them into the configs.

    Each is tried on a server of its own beside one with the best so far, so memory for both is needed. Only what is
    surely faster is written; comments in the configs stay. Restart or reload running servers afterwards.

    Example:
      cnclip-bench tune --repository build/repository --name vit-b-16 --dry-run
    """
    from cnclip_machine import usable_cores

    from cnclip_bench.output import write
    from cnclip_bench.serving_settings import read_settings, remember_settings, write_settings
    from cnclip_bench.tuning import Goal, coordinates
    from cnclip_bench.tuning import tune as search

    subject, repository = asked.subject(), asked.repository
    cores = usable_cores()
    for one in [tower] if tower else TOWERS:
        start = read_settings(repository, subject.name, one)
        typer.echo(f"{subject.name} {one}: {start}")

        def report(trial: Comparison, won: bool, start: Settings = start) -> None:
            verdict = trial.problem or f"{1 + trial.gain:.3f} times, p95 {trial.p95_ms[1]:.0f} ms"
            typer.echo(f"  {_changes(trial, start) or 'the start'}: {verdict}{'; kept' if won else ''}")

        found = search(
            lambda settings, one=one: _serving_with(subject, one, settings, concurrency, batch_size, seconds),  # type: ignore[misc]
            start,
            coordinates(start, cores),
            Goal(min_gain, max_latency_ms),
            rounds,
            report,
        )
        changes = found.best.changes_from(start)
        if not changes or found.confirmation is None:
            typer.echo("  nothing is surely better: the configs stay as they are")
        else:
            typer.echo(f"  best: {changes}, {1 + found.confirmation.gain:.3f} times the start, measured anew")
            if not dry_run:
                write_settings(repository, subject.name, one, found.best)
                remember_settings(repository, subject.name, one, changes)
                typer.echo(f"  written to the configs and the manifest in {repository}; a later `make repo` keeps it")
        bars = {_changes(trial, start): 1 + trial.gain for trial in found.trials if not trial.problem}
        title = f"{subject.arch.name}, {one}s: rate over the best before"
        write(output, f"tune-{one}", title, found, bars, "times")


def _changes(trial: Comparison, start: Settings) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.settings.changes_from(start).items())


@contextmanager
def _serving_with(
    subject: Subject, tower: Tower, settings: Settings, concurrency: int, batch_size: int | None, seconds: float
) -> Iterator[Served]:
    """Serves one ensemble with other settings, and gives what puts it under load.

    Raises:
        ValueError: They can't be written, or do not take the load.
        RuntimeError: They can't be served.
    """
    from cnclip_server import ServerError

    from cnclip_bench.load import run_load
    from cnclip_bench.requests import to_ensemble
    from cnclip_bench.serving_settings import copy_ensemble, write_settings

    if batch_size is not None and batch_size > settings.max_batch_size:
        raise ValueError(f"requests have {batch_size} items")
    with tempfile.TemporaryDirectory(prefix="cnclip-tune-") as folder:
        copy_ensemble(subject.repository, subject.name, tower, Path(folder))
        write_settings(Path(folder), subject.name, tower, settings)
        try:
            with serving(replace(subject, repository=Path(folder))) as (_, client):
                rows = batch_size or min(client.info.preferred_batch_size, settings.max_batch_size)
                request = to_ensemble(client, tower, subject.items(tower), rows)
                yield partial(run_load, request, concurrency, seconds, rows)
        except ServerError as error:
            raise RuntimeError(str(error)) from error
