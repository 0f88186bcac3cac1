"""What a server gives: features that are PyTorch's, and rates of all that can be sent to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from cnclip_builder.tensors import Tower

from cnclip_bench.gpu_report.inputs import SIZES, jpegs, pixels, token_ids
from cnclip_bench.gpu_report.memory import Meter
from cnclip_bench.gpu_report.repositories import request_for, subject_of
from cnclip_bench.gpu_report.rows import PassedOver, Rate, Report, Setup, Verified
from cnclip_bench.inputs import repeated
from cnclip_bench.load import Request, run_load
from cnclip_bench.processes import processor_seconds
from cnclip_bench.requests import encode, to_encoder, to_ensemble
from cnclip_bench.stats import Latency
from cnclip_bench.subject import Subject, serving

if TYPE_CHECKING:
    from cnclip_builder.repository.settings import Platform
    from cnclip_client import Client
    from cnclip_server import TritonServer

__all__ = [
    *("load_onnxruntime", "load_plans", "load_two_encoders", "verify_onnxruntime", "verify_plans"),
    *("job_of", "measure_load", "told"),
]

# Few and many: items a request, and requests at once.
_PIXELS = ((1, 1), (1, 16), (8, 8), (64, 4))
_IDS = ((1, 1), (1, 32), (32, 8), (64, 8))
_FEW_AND_MANY = ((1, 1), (1, 16))
# In turns, 8 requests at once; 24 on average.
_MIXED = (1, 7, 16, 32, 64)
_LARGEST = 64
_LENGTH = 40  # to which a GPU's captions are padded
# Items of a job that the client is given at once, which it sends as suits the server.
_JOB = {True: {"image": 512, "text": 4096}, False: {"image": 16, "text": 128}}


def verify_onnxruntime(setup: Setup, report: Report) -> None:
    """Compares what is served with PyTorch, as `cnclip-build verify` does."""
    _verify(setup, report, "onnxruntime")


def verify_plans(setup: Setup, report: Report) -> None:
    """Compares what is served with PyTorch, as `cnclip-build verify` does."""
    _verify(setup, report, "tensorrt")


def load_onnxruntime(setup: Setup, report: Report) -> None:
    """Puts the server under one load after another."""
    _load(setup, report, "onnxruntime")


def load_plans(setup: Setup, report: Report) -> None:
    """Puts the server under one load after another."""
    _load(setup, report, "tensorrt")


def load_two_encoders(setup: Setup, report: Report) -> None:
    """Has two instances of each encoder served: what one copies and joins, while the other computes, costs nothing."""
    from dataclasses import replace

    from cnclip_builder.build import build_repository

    request = request_for(setup, "onnxruntime")
    build_repository(replace(request, serving=replace(request.serving, encoder_instances=2)))
    subject = subject_of(setup, "onnxruntime")
    with _serving(subject, "onnxruntime") as (server, _):
        _load_encoders(setup, report, "onnxruntime", subject, server, ", two encoders")


def _verify(setup: Setup, report: Report, platform: Platform) -> None:
    from cnclip_builder.reference import Reference
    from cnclip_builder.verify import verify_server

    subject = subject_of(setup, platform)
    with _serving(subject, platform) as (server, _):
        found = verify_server(server.grpc_url, subject.name, Reference(subject.checkpoint, subject.arch))
    for tower, parity in found.parity.items():
        bound = found.tolerances[tower]
        distances = (parity.cosine_distance, bound.cosine_distance, parity.centred_distance, bound.centred_distance)
        report(Verified(platform, tower, parity.rows, *distances))
    found.require()


def _load(setup: Setup, report: Report, platform: Platform) -> None:
    subject = subject_of(setup, platform)
    photographs = {name: jpegs(size) for name, size in SIZES.items()}
    meter = Meter(setup.gpu)
    with _serving(subject, platform) as (server, client):
        meter.tell(report, platform, "server, ready")
        measure = partial(measure_load, setup, report, partial(processor_seconds, server.pid), platform)
        ensembles: dict[str, tuple[Tower, Sequence[Any]]] = {
            **{told(name, given): ("image", given) for name, given in photographs.items()},
            "texts": ("text", subject.texts),
        }
        _load_encoders(setup, report, platform, subject, server)
        for what, (tower, given) in ensembles.items():
            measure(f"{what}, a job", tower, *job_of(setup, client, tower, given), 1)
        for what, (tower, given) in ensembles.items():
            for items, at_once in _FEW_AND_MANY:
                measure(what, tower, to_ensemble(client, tower, given, items), items, at_once)
        meter.tell(report, platform, "server, after these loads")


def _load_encoders(
    setup: Setup, report: Report, platform: Platform, subject: Subject, server: TritonServer, more: str = ""
) -> None:
    """Loads the encoders alone; `more` is said of each load."""
    measure = partial(measure_load, setup, report, partial(processor_seconds, server.pid), platform)
    rows: dict[Tower, npt.NDArray[Any]] = {
        "image": pixels(_LARGEST, subject.arch.resolution),
        "text": token_ids(_LARGEST, _LENGTH),
    }

    def of(tower: Tower, *sizes: int) -> Request:
        return to_encoder(server.grpc_url, f"{subject.name}-{tower}-encoder", rows[tower], sizes)

    for items, at_once in _PIXELS:
        measure(f"pixels{more}", "image", of("image", items), items, at_once)
    measure(f"pixels, requests of 1 to 64{more}", "image", of("image", *_MIXED), round(mean(_MIXED)), 8)
    for items, at_once in _IDS:
        measure(f"ids, {_LENGTH} a text{more}", "text", of("text", items), items, at_once)


def measure_load(
    setup: Setup,
    report: Report,
    host_seconds: Callable[[], float],
    way: str,
    what: str,
    tower: Tower,
    request: Request,
    items: int,
    at_once: int,
) -> None:
    """Keeps up a load, and reports its `Rate`; `host_seconds` gives what its work took so far of the processors."""
    requests = count()

    def counted() -> None:
        request()
        next(requests)

    before = host_seconds()
    sustained = run_load(counted, at_once, setup.seconds, items)
    host_ms = (host_seconds() - before) / (next(requests) * items) * 1000
    took = Latency.of(what, sustained.waits_s)
    report(Rate(way, tower, what, items, at_once, sustained.items_per_s, took.median_ms, took.p95_ms, host_ms))


def job_of(setup: Setup, client: Client, tower: Tower, given: Sequence[Any]) -> tuple[Request, int]:
    """Gives what has the client encode many items at once, and how many."""
    number = _JOB[setup.gpu][tower]
    return partial(encode, client, tower, repeated(given, number)), number


def told(name: str, images: Sequence[bytes]) -> str:
    """Says what JPEGs are sent."""
    return f"JPEGs, {name}, {mean(map(len, images)) / 1000:.0f} kB"


@contextmanager
def _serving(subject: Subject, platform: Platform) -> Iterator[tuple[TritonServer, Client]]:
    """Serves the repository.

    Raises:
        PassedOver: This tritonserver has no such backend.
    """
    from cnclip_server import find_binary

    binary = find_binary()
    if platform == "tensorrt" and not (binary.home / "backends" / "tensorrt").is_dir():
        raise PassedOver(f"{binary.path} has no tensorrt backend: run this in NVIDIA's container of your plans' month")
    with serving(subject) as served:
        yield served
