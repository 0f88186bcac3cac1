"""How much of a card's memory is taken: by this process, and by servers that it starts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cnclip_bench.gpu_report.rows import Memory, Report
from cnclip_bench.processes import proportional_mib

__all__ = ["Meter"]

_INTERVAL_S = 0.02


class Meter:
    """What has been taken since it was made: of the card by all that runs there, on a CPU by this process and its own.

    Asks CUDA by torch, which knows of CUDA_VISIBLE_DEVICES and MIG; where torch has no CUDA, nothing is told.
    """

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu
        self._before = self._taken_mib()  # torch's own part of the card, some 500 MiB, is in it

    def tell(self, report: Report, way: str, what: str) -> None:
        """Reports what was taken by way of something."""
        now = self._taken_mib()
        if now is not None and self._before is not None:
            report(Memory(way, what, now - self._before))

    @contextmanager
    def watching(self, report: Report, way: str, what: str) -> Iterator[None]:
        """Looks again and again, and reports the most that was taken meanwhile."""
        seen, over = [self._taken_mib()], threading.Event()

        def look() -> None:
            while not over.wait(_INTERVAL_S):
                seen.append(self._taken_mib())

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
        most = max((mib for mib in seen if mib is not None), default=None)
        if most is not None and self._before is not None:
            report(Memory(way, what, most - self._before))

    def _taken_mib(self) -> float | None:
        if not self._gpu:
            return proportional_mib(os.getpid())
        import torch

        if not torch.cuda.is_available():
            return None
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
