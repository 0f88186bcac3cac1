"""How far a command is, how fast, and when it will be through: a bar on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["progress"]

_RATE_SECONDS = 30.0


@contextmanager
def progress(shown: bool, total: Callable[[], int | None]) -> Iterator[Callable[[int, int], None]]:
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


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} items/s" if task.speed else "")
