"""How far a command is, how fast, and when it will be through, on stderr: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import typer
from cnclip_console import option
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cnclip_client.command_line import complain
from cnclip_client.features import Features
from cnclip_client.index import Report as StageReport

__all__ = [
    "ProgressEvery",
    "ProgressOption",
    "StageReport",
    "has_room",
    "job_progress",
    "progress",
    "stages",
    "told_of",
]

_RATE_SECONDS = 30.0

Style: TypeAlias = Literal["auto", "json", "none"]
Report: TypeAlias = Callable[[int, int], None]
ProgressOption = Annotated[
    Style, option("On stderr: a bar, or a line a minute where that is no terminal; or JSON lines.", "--progress")
]
ProgressEvery = Annotated[float, option("How often such a line comes.", metavar="SECONDS", min=0.01)]


def job_progress(style: Style, every_s: float, total: Callable[[], int | None]) -> AbstractContextManager[Report]:
    """Tells how far a job is while the context lasts, whoever looks at it.

    Args:
        style: How.
        every_s: Seconds between lines.
        total: As for `progress`.
    """
    if style == "none" or (style == "auto" and sys.stderr.isatty()):
        return progress(style == "auto", total)
    return _Lines(_as_json if style == "json" else _as_words, every_s, total, always=style == "json")


def has_room(output: str = "") -> bool:
    """Tells whether there is a terminal for a bar: not one on which results are printed, with `-` for the output."""
    return sys.stderr.isatty() and (output != "-" or not sys.stdout.isatty())


@contextmanager
def progress(shown: bool, total: Callable[[], int | None]) -> Iterator[Report]:
    """Shows a bar while the context lasts.

    Args:
        shown: Whether there is one.
        total: Counts the items that there are, or guesses; it may take a while.

    Yields:
        What to call now and then with the items done and those failed among them: first with what earlier runs did.
    """
    if not shown:
        yield lambda items, failures: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=_RATE_SECONDS) as bar:
        task = bar.add_task("encoding", total=None)
        begun = False

        def count() -> None:
            # A guess is good enough for a bar, and a failure to guess is no failure.
            with contextlib.suppress(Exception):
                bar.update(task, total=total())

        def report(items: int, failures: int) -> None:
            nonlocal begun
            told = f"encoding, {failures:,} failed" if failures else "encoding"
            if begun:
                bar.update(task, completed=items, description=told)
            else:
                # What earlier runs did says nothing of this one's rate.
                bar.reset(task, completed=items, description=told)
                begun = True

        threading.Thread(target=count, daemon=True).start()
        yield report


@contextmanager
def stages(output: str = "") -> Iterator[StageReport]:
    """Shows what is being done while the context lasts, on stderr where that is a terminal.

    Args:
        output: As for `has_room`.

    Yields:
        What to call now and then with what is being done, and for how many rows of how many it is; 0 is not known.
    """
    if not has_room(output):
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        stage = "reading"

        def report(now: str, done: int, total: int) -> None:
            nonlocal stage
            if now != stage:
                bar.reset(task, description=now)
                stage = now
            bar.update(task, completed=done, total=total or None)

        yield report


def told_of(features: Iterable[Features], stage: str, report: StageReport) -> Iterator[Features]:
    """Passes features on, and tells how many there were before."""
    done = 0
    for some in features:
        report(stage, done, 0)
        yield some
        done += len(some.ids)


@dataclass(frozen=True, slots=True)
class _Stand:
    """How far a job is.

    Attributes:
        done: Items that are done, by earlier runs too.
        failed: Those of them that failed.
        total: How many there are, or about how many, if that is known.
        rate: Items a second since the line before.
        seconds: Since this run began.
        finished: Whether the job has come to its end.
    """

    done: int
    failed: int
    total: int | None
    rate: float
    seconds: float
    finished: bool

    @property
    def seconds_left(self) -> float | None:
        """How long it will take yet; None if there is no telling."""
        if self.total is None or not self.rate:
            return None
        return max(self.total - self.done, 0) / self.rate


class _Lines:
    """Tells now and then, also while nothing comes, as where a server is waited for; a context manager.

    Args:
        told: Tells it.
        every_s: Seconds between two times.
        total: As for `progress`.
        always: Whether to tell at the end too, however soon that is.
    """

    def __init__(
        self, told: Callable[[_Stand], None], every_s: float, total: Callable[[], int | None], *, always: bool
    ) -> None:
        self._told = told
        self._every_s = every_s
        self._total_of = total
        self._always = always
        self._started = time.monotonic()
        self._done = self._failed = 0
        self._earlier: int | None = None
        self._total: int | None = None
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Report:
        threading.Thread(target=self._count, daemon=True).start()
        self._teller.start()
        return self._report

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._teller.join()
        if self._always:
            # Over the whole run, as the last piece of it may be short.
            self._told(self._stand(self._started, 0, finished=failure is None))

    def _report(self, done: int, failed: int) -> None:
        if self._earlier is None:
            self._earlier = done  # what earlier runs did says nothing of this one's rate
        self._done, self._failed = done, failed

    def _stand(self, since: float, before: int, *, finished: bool = False) -> _Stand:
        now = time.monotonic()
        rate = max(self._done - max(before, self._earlier or 0), 0) / max(now - since, 1e-9)
        return _Stand(self._done, self._failed, self._total, rate, now - self._started, finished)

    def _count(self) -> None:
        # Later, as it may cost as much as reading the source does, and short jobs need no line.
        if not self._over.wait(self._every_s / 2):
            with contextlib.suppress(Exception):
                self._total = self._total_of()

    def _tell(self) -> None:
        since, before = self._started, 0
        while not self._over.wait(self._every_s):
            self._told(self._stand(since, before))
            since, before = time.monotonic(), self._done


def _as_words(one: _Stand) -> None:
    of = "" if one.total is None else f" of {one.total:,}"
    left = one.seconds_left
    ending = "" if left is None else f", {_duration(left)} left"
    complain(f"{one.done:,}{of} done, {one.failed:,} failed, {one.rate:,.1f} items/s{ending}")


def _as_json(one: _Stand) -> None:
    left = one.seconds_left
    line = {
        "done": one.done,
        "failed": one.failed,
        "total": one.total,
        "items_per_second": round(one.rate, 1),
        "seconds": round(one.seconds, 1),
        "seconds_left": None if left is None or one.finished else round(left),
        "finished": one.finished,
    }
    typer.echo(json.dumps(line), err=True)


def _duration(seconds: float) -> str:
    """Returns a duration in the two largest units that say something."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} items/s" if task.speed else "")
