"""How decoding and resizing fill a host's cores: by threads of one process, by processes, and by some of both."""

from __future__ import annotations

import multiprocessing
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from cnclip_bench.inputs import repeated
from cnclip_bench.stats import in_turns

__all__ = ["Filling", "fill_cores", "layouts", "worker_counts"]

_LEAST_IMAGES = 4
_START_S = 120.0


@dataclass(frozen=True)
class Filling:
    """What so many workers did.

    Attributes:
        way: How they were spread: `threads`, `processes`, or `2 threads a process`.
        workers: Threads of all processes together.
        rounds_images_per_s: Of each round, all workers together.
        of_linear: The median of the rounds' rates, each over that of as many times one worker in the same round.
    """

    way: str
    workers: int
    rounds_images_per_s: tuple[float, ...]
    of_linear: float

    @property
    def images_per_s(self) -> float:
        """The median of the rounds."""
        return float(np.median(self.rounds_images_per_s))


def worker_counts(cores: int) -> list[int]:
    """1, 2, 4 and so on, and all cores."""
    powers = [2**power for power in range(cores.bit_length())]
    return sorted({*(count for count in powers if count < cores), cores})


def layouts(workers: int) -> dict[str, list[int]]:
    """The ways to spread workers: the threads of each process, by the way's name."""
    ways = {"threads": [workers], "processes": [1] * workers}
    ways |= {f"{each} threads a process": [each] * (workers // each) for each in (2, 4) if workers % each == 0}
    return {way: layout for way, layout in ways.items() if way == "threads" or layout != [workers]}


def fill_cores(
    images: Sequence[bytes], resolution: int, counts: Sequence[int], seconds: float, rounds: int
) -> list[Filling]:
    """Has images decoded and resized, as the server does, by ever more workers, in turns.

    Args:
        images: Encoded.
        resolution: Of the encoder.
        counts: How many workers; 1 is measured in any case.
        seconds: How long one worker alone is to be busy in a round.
        rounds: How often.

    Returns:
        What was measured, by the count and then by the way; one worker alone comes first, once.
    """
    wanted = [("threads", [1])]
    wanted += [(way, layout) for count in counts if count > 1 for way, layout in layouts(count).items()]
    most = max(len(layout) for _, layout in wanted)
    with _workers(images, resolution, most) as workers:
        _run(workers, [1] * most, _LEAST_IMAGES)  # each process does some things at its first image
        each = max(_LEAST_IMAGES, int(seconds * _LEAST_IMAGES / _run(workers, [1], _LEAST_IMAGES)))

        def rate(layout: Sequence[int]) -> float:
            return each * sum(layout) / _run(workers, layout, each)

        rates = in_turns({number: partial(rate, layout) for number, (_, layout) in enumerate(wanted)}, rounds)
    alone = np.asarray(rates[0])
    found = []
    for number, (way, layout) in enumerate(wanted):
        ratios = np.asarray(rates[number]) / (sum(layout) * alone)
        found.append(Filling(way, sum(layout), tuple(rates[number]), float(np.median(ratios))))
    return found


def _run(workers: Sequence[Connection], layout: Sequence[int], each: int) -> float:
    """Gives the seconds until all are done: so many processes, each with so many threads, each with `each` images."""
    began = time.perf_counter()
    for worker, threads in zip(workers, layout, strict=False):
        worker.send((threads, each))
    for worker, _ in zip(workers, layout, strict=False):
        if (error := worker.recv()) is not None:
            raise ValueError(error)
    return time.perf_counter() - began


@contextmanager
def _workers(images: Sequence[bytes], resolution: int, count: int) -> Iterator[list[Connection]]:
    """Starts processes that are ready; they end with it."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(theirs, list(images), resolution), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            if not pipe.poll(_START_S):
                raise ValueError(f"a process was not ready within {_START_S:g} s")
            pipe.recv()
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _work(pipe: Connection, images: list[bytes], resolution: int) -> None:
    """A process: decodes as many images in as many threads as it is told, until the pipe is closed."""
    from cnclip_pixels import decode_pixels

    warnings.simplefilter("ignore")
    pipe.send(None)
    while True:
        try:
            threads, each = pipe.recv()
        except (EOFError, OSError):
            return
        errors: list[str] = []

        def decode(first: int, each: int = each, errors: list[str] = errors) -> None:
            try:
                # Each begins elsewhere, so that they aren't all at the largest at once.
                first %= len(images)
                for image in repeated(images[first:] + images[:first], each):
                    decode_pixels(image, resolution)
            except Exception as error:
                errors.append(f"an image can't be decoded: {error}")

        running = [threading.Thread(target=decode, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        pipe.send(errors[0] if errors else None)
