"""JPEGs decoded on the card, in process and served: beside the exact way, and how far from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from cnclip_bench.gpu_report.inputs import SIZES, jpegs
from cnclip_bench.gpu_report.memory import Meter
from cnclip_bench.gpu_report.repositories import subject_of
from cnclip_bench.gpu_report.rows import Fact, PassedOver, Rate, Report, Setup, Verified
from cnclip_bench.gpu_report.served import measure_load, told
from cnclip_bench.inputs import repeated
from cnclip_bench.load import run_load
from cnclip_bench.requests import to_ensemble
from cnclip_bench.stats import Latency
from cnclip_bench.subject import serving

__all__ = ["build_for_card", "load_card", "time_card"]

_WAY = "card"
# Where the card is faster than the host's cores, if not at one image.
_BATCHES = (1, 8, 64)
# Images a request, and requests at once; the last one is a job's.
_LOADS = ((1, 1), (1, 16), (8, 8), (64, 4))


def time_card(setup: Setup, report: Report) -> None:
    """Times batches of JPEGs on the card and on the host's cores, with what of the host's time each takes.

    Raises:
        PassedOver: There is no card that decodes.
    """
    _require(setup)
    from cnclip_builder.arch import get_arch
    from cnclip_card import open_card
    from cnclip_machine import usable_cores
    from cnclip_pixels import decode_pixels, image_formats

    side, cores = get_arch(setup.arch).resolution, usable_cores()
    card = open_card(side, image_formats(), threads=cores)
    report(Fact("decoding on the card", card.about))
    with ThreadPoolExecutor(cores) as pool:

        def exactly(images: Sequence[bytes]) -> list[Any]:
            return list(pool.map(lambda image: decode_pixels(image, side), images))

        ways: dict[str, Callable[[Sequence[bytes]], object]] = {
            "on the card": lambda images: card.prepare(images, exactly),
            f"exactly, {cores} threads": exactly,
        }
        for name, size in SIZES.items():
            photographs = jpegs(size)
            for batch in _BATCHES:
                images = repeated(photographs, batch)
                for way, decode in ways.items():
                    _measure(setup, report, f"{told(name, photographs)} in process, {way}", decode, images)


def build_for_card(setup: Setup, report: Report) -> None:
    """Builds a repository whose JPEGs the card decodes, and tells how far its pixels are from exact ones.

    Raises:
        PassedOver: There is no card that decodes.
    """
    _require(setup)
    from cnclip_builder.build import build_repository
    from cnclip_builder.repository.manifest import load_manifest

    from cnclip_bench.gpu_report.repositories import request_for

    request = replace(request_for(setup, "onnxruntime", preprocess="gpu"), repository=setup.repository(_WAY))
    entry = build_repository(request)
    found = load_manifest(request.repository).models[entry.name][str(entry.version)]["card_decoding"]
    for what in ("images", "exact_share", "largest_pixel_difference", "mean_pixel_difference"):
        report(Fact(f"card against exact pixels, {what.replace('_', ' ')}", f"{found[what]:.3g}"))
    for what in ("cosine_distance", "centred_distance"):
        report(Fact(f"card against exact pixels, {what.replace('_', ' ')}", f"{found['features'][what]:.1e}"))


def load_card(setup: Setup, report: Report) -> None:
    """Compares what the card's pixels come to with exact ones, by the same served encoder; then sends JPEGs."""
    from cnclip_builder.reference import Reference
    from cnclip_builder.verify import CARD_TOLERANCE, verify_server

    subject = replace(subject_of(setup, "onnxruntime"), repository=setup.repository(_WAY))
    meter = Meter(setup.gpu)
    with serving(subject) as (server, client):
        meter.tell(report, _WAY, "server, ready")
        for name, size in SIZES.items():
            photographs = jpegs(size)
            for items, at_once in _LOADS:
                request = to_ensemble(client, "image", photographs, items)
                measure_load(setup, report, _WAY, told(name, photographs), "image", request, items, at_once)
        meter.tell(report, _WAY, "server, after these loads")
        found = verify_server(server.grpc_url, subject.name, Reference(subject.checkpoint, subject.arch))
        if (card := found.card_decoding) is not None:
            distances = (card.cosine_distance, CARD_TOLERANCE.cosine_distance)
            centred = (card.centred_distance, CARD_TOLERANCE.centred_distance)
            report(Verified(_WAY, "image", card.rows, *distances, *centred))
    found.require()


def _measure(
    setup: Setup, report: Report, what: str, decode: Callable[[Sequence[bytes]], object], images: Sequence[bytes]
) -> None:
    decode(images)  # the first of a size takes memory, and compiles
    began, asked = time.process_time(), 0

    def request() -> None:
        nonlocal asked
        decode(images)
        asked += len(images)

    sustained = run_load(request, 1, setup.seconds, len(images))
    host_ms = (time.process_time() - began) / asked * 1000
    took = Latency.of(what, sustained.waits_s)
    told_more = f"{what}; {host_ms:.2g} ms of the host's cores an image"
    report(Rate(_WAY, "image", told_more, len(images), 1, sustained.items_per_s, took.median_ms, took.p95_ms))


def _require(setup: Setup) -> None:
    if not setup.gpu:
        raise PassedOver("nvImageCodec is measured on GPUs, and this machine shows none")
    from cnclip_builder.card.stage import why_no_card

    if why := why_no_card():
        raise PassedOver(why)
