"""JPEGs decoded on the card, in process and served: beside the exact way, and how far from it."""

from __future__ import annotations

import random
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cnclip_bench.gpu_report.inputs import SIZES, jpegs
from cnclip_bench.gpu_report.memory import Meter
from cnclip_bench.gpu_report.repositories import subject_of
from cnclip_bench.gpu_report.rows import Fact, PassedOver, Report, Setup, Verified
from cnclip_bench.gpu_report.served import job_of, measure_load, told
from cnclip_bench.inputs import repeated
from cnclip_bench.processes import processor_seconds
from cnclip_bench.requests import to_ensemble
from cnclip_bench.subject import serving

if TYPE_CHECKING:
    from cnclip_card import Card
    from cnclip_server import TritonServer

__all__ = ["build_for_card", "load_card", "tell_of_card", "time_card"]

_WAY = "card"
# Where the card is faster than the host's cores, if not at one image.
_BATCHES = (1, 2, 4, 8, 16, 64)
# Images a request, and requests at once.
_LOADS = ((1, 1), (1, 16), (8, 8), (64, 4))
# More than may be on a card at once: 2.3 GB of pixels a request.
_LARGEST, _LARGEST_LOAD = (4000, 3000), (64, 2)
# JPEGs whose data are damaged, and grey levels on average from which on a picture is another one.
_DAMAGED, _OTHER = 64, 4.0


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
    report(Fact("JPEGs whose data are damaged", _told_of_damage(card, side)))
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
                    decode(images)  # the first of a size takes memory, and compiles
                    what, request = f"{told(name, photographs)} in process, {way}", partial(decode, images)
                    measure_load(setup, report, time.process_time, _WAY, what, "image", request, batch, 1)


def _told_of_damage(card: Card, side: int) -> str:
    """Says what a card makes of JPEGs of which only some of the data are damaged, beside what the exact way does."""
    from cnclip_pixels import BadImage, decode_pixels

    def exactly(image: bytes) -> Any:
        try:
            return decode_pixels(image, side)
        except BadImage as error:
            return error

    chosen = random.Random(0)
    images = [_damaged(image, chosen) for image in repeated(jpegs((640, 480)), _DAMAGED)]
    prepared = card.prepare(images, lambda others: map(exactly, others))
    on_card = [row for row, pixels in enumerate(prepared.rows) if pixels is None]
    refused = others = 0
    for row in on_card:
        expected, squares = exactly(images[row]), prepared.squares
        if isinstance(expected, BadImage):
            refused += 1
        elif squares is not None:
            others += float(np.abs(squares.read(row) - expected.astype(np.int16)).mean()) > _OTHER
    return (
        f"of {len(images)} the card decodes {len(on_card)}, of them {refused} that are refused exactly and {others} "
        f"that are another picture then{'; it said: ' * bool(prepared.why_not)}{prepared.why_not}"
    )


def _damaged(image: bytes, chosen: random.Random) -> bytes:
    """Changes three bytes of a JPEG's data, and none of its markers."""
    data = bytearray(image)
    for _ in range(3):
        at = chosen.randrange(len(data) // 2, len(data) - 2)
        if 0xFF not in data[at - 1 : at + 1]:
            data[at] ^= chosen.randrange(1, 0x80)
            if data[at] == 0xFF:
                data[at] = 0
    return bytes(data)


def build_for_card(setup: Setup, report: Report) -> None:
    """Builds a repository whose JPEGs the card decodes, and tells how far its pixels are from exact ones.

    Raises:
        PassedOver: There is no card that decodes.
    """
    _require(setup)
    from cnclip_builder.build import build_repository
    from cnclip_builder.repository.manifest import load_manifest

    from cnclip_bench.gpu_report.repositories import request_for

    photographs = setup.folder / "photographs"  # few of the builder's pictures go to the card
    photographs.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        for number, image in enumerate(jpegs(size)):
            (photographs / f"{name}-{number}.jpg").write_bytes(image)
    request = request_for(setup, "onnxruntime", preprocess="gpu")
    request = replace(request, repository=setup.repository(_WAY), card_images=photographs)
    entry = build_repository(request)
    found = load_manifest(request.repository).models[entry.name][str(entry.version)]["card_decoding"]
    for what in ("images", "exact_share", "largest_pixel_difference", "mean_pixel_difference"):
        report(Fact(f"card against exact pixels, {what.replace('_', ' ')}", f"{found[what]:.3g}"))
    for what in ("cosine_distance", "centred_distance"):
        report(Fact(f"card against exact pixels, {what.replace('_', ' ')}", f"{found['features'][what]:.1e}"))


def load_card(setup: Setup, report: Report) -> None:
    """Sends JPEGs, compares the card's pixels with exact ones by the same served encoder, and sends the largest."""
    from cnclip_builder.reference import Reference
    from cnclip_builder.verify import CARD_TOLERANCE, verify_server

    subject = replace(subject_of(setup, "onnxruntime"), repository=setup.repository(_WAY))
    meter = Meter(setup.gpu)
    with serving(subject) as (server, client), ExitStack() as last:
        last.callback(tell_of_card, server, report)  # most of all where a load fails
        meter.tell(report, _WAY, "server, ready")
        measure = partial(measure_load, setup, report, partial(processor_seconds, server.pid), _WAY)
        for name, size in SIZES.items():
            photographs = jpegs(size)
            measure(f"{told(name, photographs)}, a job", "image", *job_of(setup, client, "image", photographs), 1)
            for items, at_once in _LOADS:
                request = to_ensemble(client, "image", photographs, items)
                measure(told(name, photographs), "image", request, items, at_once)
        meter.tell(report, _WAY, "server, after these loads")
        found = verify_server(server.grpc_url, subject.name, Reference(subject.checkpoint, subject.arch))
        if (card := found.card_decoding) is not None:
            distances = (card.cosine_distance, CARD_TOLERANCE.cosine_distance)
            centred = (card.centred_distance, CARD_TOLERANCE.centred_distance)
            report(Verified(_WAY, "image", card.rows, *distances, *centred))
        largest, (items, at_once) = jpegs(_LARGEST), _LARGEST_LOAD
        what = told("x".join(map(str, _LARGEST)), largest)
        with meter.watching(report, _WAY, f"server, the most with {what}"):
            measure(what, "image", to_ensemble(client, "image", largest, items), items, at_once)
    found.require()


def tell_of_card(server: TritonServer, report: Report) -> None:
    """Tells which way pixels went from the card, how many images it decoded, and why others left it."""
    log = server.log_path.read_text(encoding="utf-8", errors="replace")
    for line in dict.fromkeys(re.findall(r"pixels go on [^\n\"]+|the card (?:is full|failed)[^\n\"]+", log)):
        report(Fact("served with decoding on the card", line))
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        counted = re.findall(r'^cnclip_card_(\w+){.*\bw\w\w="(\w+)".*} (\d+)', answer.read().decode(), re.MULTILINE)
    told = ", ".join(f"{what} {which} {number}" for what, which, number in sorted(counted))
    report(Fact("counted with decoding on the card", told))


def _require(setup: Setup) -> None:
    if not setup.gpu:
        raise PassedOver("nvImageCodec is measured on GPUs, and this machine shows none")
    from cnclip_builder.card.stage import why_no_card

    if why := why_no_card():
        raise PassedOver(why)
