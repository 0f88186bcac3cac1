"""What is compared: each function measures two or more things in turns and gives seconds by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cnclip_builder.tensors import TENSORS

from cnclip_bench.inputs import repeated
from cnclip_bench.requests import encode
from cnclip_bench.stats import timed_in_turns
from cnclip_bench.subject import onnx_session

if TYPE_CHECKING:
    from cnclip_builder.tensors import Tower
    from cnclip_client import Client

    from cnclip_bench.subject import Subject

__all__ = ["encoders", "preprocessing", "reduced_difference", "served_over_in_process", "stages", "tokenizing"]

Timings = dict[str, list[float]]


def encoders(subject: Subject, tower: Tower, batch_size: int, rounds: int, client: Client) -> Timings:
    """Times one encoder's forward pass in PyTorch, in ONNX Runtime and in TensorRT, and the whole served ensemble.

    ONNX are the files in cn_clip's format where they were built, and what is served otherwise; TensorRT is there where
    a plan is served. All of these start from pixels or token ids that are there, as in Chinese-CLIP's
    `speed_benchmark.py`; what is served starts from encoded images and texts, and crosses gRPC. PyTorch and the files
    in cn_clip's format run on the CPU, also where what is served runs on a GPU: there `gpu-report` compares.
    """
    import torch
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.towers import load_tower
    from cnclip_builder.export.files import onnx_name
    from cnclip_builder.parity.probes import normalise
    from cnclip_builder.plans.api import load_tensorrt
    from cnclip_pixels import decode_pixels

    given = repeated(subject.items(tower), batch_size)
    if tower == "image":
        served_inputs: Any = np.stack([decode_pixels(image, subject.arch.resolution) for image in given])
        inputs = normalise(served_inputs)
    else:
        ids = subject.token_ids()
        served_inputs = ids.pad([ids.encode(text) for text in given])
        inputs = served_inputs.astype(np.int64)
    module = load_tower(load_checkpoint(subject.checkpoint, subject.arch), tower)
    tensor = torch.from_numpy(inputs)

    def pytorch() -> None:
        with torch.inference_mode():
            module(tensor)

    jobs: dict[str, Callable[[], object]] = {"PyTorch": pytorch}
    names = TENSORS[tower]
    for precision in ("fp32", "fp16"):
        path = subject.artefacts / onnx_name(subject.arch, tower, precision)
        if path.exists():
            session = onnx_session(path)
            jobs[f"ONNX {precision}"] = lambda session=session: session.run(None, {names.input: inputs})  # type: ignore[misc]
    jobs["served"] = lambda: encode(client, tower, given, batch_size)
    with ExitStack() as opened:
        if subject.served_file(tower).suffix == ".plan":
            run = opened.enter_context(load_tensorrt().open(subject.served_file(tower).read_bytes()))
            jobs["TensorRT"] = lambda: run(0, served_inputs)
        elif not any(name.startswith("ONNX") for name in jobs):
            as_served = subject.served_session(tower)
            jobs["ONNX as served"] = lambda: as_served.run(None, {names.served_input: served_inputs})
        return timed_in_turns(jobs, rounds, time.perf_counter)


def served_over_in_process(
    subject: Subject, tower: Tower, items: int, rounds: int, client: Client, batch_sizes: Sequence[int]
) -> Timings:
    """Times the client's way through the server against the same session in this process, preprocessing included.

    In process: batches of each size one after another, images decoded by as many threads as there are cores. Served:
    the client's defaults. The idle ones have their threads asleep.
    """
    from cnclip_machine import usable_cores
    from cnclip_pixels import decode_pixels

    given = repeated(subject.items(tower), items)
    session, ids, names = subject.served_session(tower), subject.token_ids(), TENSORS[tower]
    with ThreadPoolExecutor(usable_cores()) as pool:

        def in_process(batch_size: int) -> None:
            for start in range(0, items, batch_size):
                batch = given[start : start + batch_size]
                if tower == "image":
                    pixels = pool.map(lambda image: decode_pixels(image, subject.arch.resolution), batch)
                    inputs: npt.NDArray[Any] = np.stack(list(pixels))
                else:
                    inputs = ids.pad([ids.encode(text) for text in batch])
                session.run([names.normalised], {names.served_input: inputs})

        jobs: dict[str, Callable[[], object]] = {
            f"in process, batches of {size}": partial(in_process, size) for size in batch_sizes
        }
        jobs["served"] = lambda: encode(client, tower, given)
        return timed_in_turns(jobs, rounds, time.perf_counter)


def preprocessing(subject: Subject, count: int, rounds: int) -> Timings:
    """Times decoding and resizing of so many images: cn_clip's transform, and the served one, exact and reduced.

    On one core, in the processor's time, and the served one on all of them too, as its model does. "Pillow" is the
    served one without the compiled resize, "resize alone" the one in which Pillow decodes all images. cn_clip's also
    makes floats of its pixels and normalises them, which the served encoder does.
    """
    import io

    from cn_clip.clip import image_transform
    from cnclip_machine import usable_cores
    from cnclip_pixels import decode_pixels
    from PIL import Image

    transform, given = image_transform(subject.arch.resolution), repeated(subject.images, count)

    def cn_clip() -> None:
        for image in given:
            transform(Image.open(io.BytesIO(image)))

    def ours(reduced: bool = False, compiled: bool = True, streamed: bool = True) -> None:
        for image in given:
            decode_pixels(image, subject.arch.resolution, reduced=reduced, compiled=compiled, streamed=streamed)

    one_core: dict[str, Callable[[], None]] = {
        "cn_clip": cn_clip,
        "Pillow": partial(ours, compiled=False),
        "resize alone": partial(ours, streamed=False),
        "served": ours,
        "reduced, Pillow": partial(ours, reduced=True, compiled=False),
        "reduced": partial(ours, reduced=True),
    }
    # The processor's time: what else runs on the machine is not in it. Of several cores it would be their sum.
    timings = timed_in_turns(one_core, rounds, time.process_time)
    cores = usable_cores()
    with ThreadPoolExecutor(cores) as pool:

        def on_all_cores() -> None:
            list(pool.map(lambda image: decode_pixels(image, subject.arch.resolution), given))

        return {**timings, **timed_in_turns({f"served, {cores} cores": on_all_cores}, rounds, time.perf_counter)}


def reduced_difference(subject: Subject) -> dict[str, float]:
    """How far reduced decoding takes pixels from exact ones, in grey levels: of the images that it changes."""
    from cnclip_pixels import decode_pixels

    differences = []
    for image in subject.images:
        exact, reduced = (decode_pixels(image, subject.arch.resolution, reduced=one) for one in (False, True))
        differences.append(np.abs(exact.astype(np.int16) - reduced))
    changed = [one for one in differences if one.any()]
    return {
        "images": float(len(differences)),
        "changed": float(len(changed)),
        "mean": float(np.mean([one.mean() for one in changed])) if changed else 0.0,
        "mean of the worst": float(max((one.mean() for one in changed), default=0.0)),
        "most": float(max((one.max() for one in changed), default=0.0)),
    }


def tokenizing(subject: Subject, count: int, rounds: int) -> Timings:
    """Times tokenising of so many texts on one core: cn_clip's `tokenize`, and the served one."""
    from cn_clip.clip import tokenize
    from cnclip_token_ids import decoded

    texts, ids = repeated(subject.texts, count), subject.token_ids()
    received = [text.encode() for text in texts]
    jobs: dict[str, Callable[[], object]] = {
        "cn_clip": lambda: tokenize(texts),
        "served": lambda: ids.pad([ids.encode(decoded(text)) for text in received]),
    }
    return timed_in_turns(jobs, rounds, time.perf_counter)


def stages(subject: Subject, tower: Tower, items: int, url: str, client: Client) -> dict[str, float]:
    """Gives what each step of an ensemble took of one item, in milliseconds, from Triton's own statistics.

    Steps overlap, so these are shares of the work and not of the time that an item takes. The queue is the waiting of
    requests for the step, spread over their items.
    """
    import tritonclient.grpc as grpc

    steps = {"image": ("image-preprocess", "image-encoder"), "text": ("text-tokenize", "text-encoder")}[tower]
    with grpc.InferenceServerClient(url) as server:

        def read() -> dict[str, tuple[int, int, int]]:
            found = {}
            for step in steps:
                one = server.get_inference_statistics(f"{subject.name}-{step}").model_stats[-1]
                times = one.inference_stats
                compute = times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns
                batches = sum(
                    entry.compute_input.ns + entry.compute_infer.ns + entry.compute_output.ns
                    for entry in one.batch_stats
                )
                found[step] = (one.inference_count, times.queue.ns, batches or compute)
            return found

        given = repeated(subject.items(tower), items)
        encode(client, tower, given)  # what is done at the first request does not count
        before = read()
        encode(client, tower, given)
        after = read()
    taken = {}
    for step in steps:
        rows, queue, compute = (now - then for now, then in zip(after[step], before[step], strict=True))
        taken[f"{step} queue"] = queue / rows / 1e6
        taken[f"{step} compute"] = compute / rows / 1e6
    return taken
