"""What an encoder leaves out, and what that saves: padding, the last block's other tokens, large batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnclip_bench.comparisons import Timings
from cnclip_bench.inputs import repeated
from cnclip_bench.stats import timed_in_turns
from cnclip_bench.subject import onnx_session

if TYPE_CHECKING:
    from cnclip_builder.tensors import Tower

    from cnclip_bench.subject import Subject

__all__ = ["batch_sizes", "has_padded_encoder", "last_block", "padding"]


def has_padded_encoder(subject: Subject) -> bool:
    """Whether there is the artefact in cn_clip's format that `padding` needs, and what is served runs where it does."""
    return _padded_encoder(subject).exists() and not subject.is_served_on_gpu("text")


def _padded_encoder(subject: Subject) -> Path:
    from cnclip_builder.export.files import onnx_name

    return subject.artefacts / onnx_name(subject.arch, "text", "fp32")


def padding(subject: Subject, batch_size: int, rounds: int) -> Timings:
    """Times a batch of texts padded as cn_clip does, padded to the longest of them, and as the served encoder takes it.

    The first two are the artefact in cn_clip's format, whose encoder computes padding; all run on the CPU.

    Raises:
        ValueError: A plan is served.
    """
    artefact = _padded_encoder(subject)
    padded, served, token_ids = onnx_session(artefact), subject.served_session("text"), subject.token_ids()
    rows = [token_ids.encode(text) for text in repeated(subject.texts, batch_size)]
    to_longest = token_ids.pad(rows)
    whole = np.zeros((batch_size, token_ids.context_length), dtype=np.int64)
    whole[:, : to_longest.shape[1]] = to_longest
    shorter = to_longest.astype(np.int64)
    jobs: dict[str, Callable[[], object]] = {
        f"padded to {token_ids.context_length}": lambda: padded.run(None, {"text": whole}),
        "padded to the longest": lambda: padded.run(None, {"text": shorter}),
        "as served": lambda: served.run(None, {"text": to_longest}),
    }
    return timed_in_turns(jobs, rounds, time.perf_counter)


def last_block(subject: Subject, tower: Tower, batch_size: int, rounds: int) -> Timings:
    """Times an encoder in PyTorch with its whole last block, as cn_clip has it, and with its class token alone."""
    import torch
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.towers import load_tower
    from cnclip_builder.parity.probes import make_probes

    from cnclip_bench.class_token import compute_class_token_only

    whole, shorter = (load_tower(load_checkpoint(subject.checkpoint, subject.arch), tower) for _ in range(2))
    compute_class_token_only(shorter.clip)
    probes = make_probes(subject.arch)
    rows = probes.image if tower == "image" else probes.text
    inputs = torch.from_numpy(rows[np.arange(batch_size) % len(rows)])

    def job(module: Any) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                module(inputs)

        return run

    return timed_in_turns({"whole last block": job(whole), "its class token": job(shorter)}, rounds, time.perf_counter)


def batch_sizes(subject: Subject, tower: Tower, sizes: list[int], items: int, rounds: int) -> Timings:
    """Times so many items through the served encoder's session, in batches of each size; names are the sizes.

    Raises:
        ValueError: A plan is served.
    """
    from cnclip_pixels import decode_pixels

    session = subject.served_session(tower)
    name = session.get_inputs()[0].name
    given = repeated(subject.items(tower), items)
    if tower == "image":
        decoded = {image: decode_pixels(image, subject.arch.resolution) for image in set(given)}
        rows: npt.NDArray[Any] = np.stack([decoded[image] for image in given])
    else:
        token_ids = subject.token_ids()
        rows = token_ids.pad([token_ids.encode(text) for text in given])

    def in_batches(size: int) -> Callable[[], object]:
        return lambda: [session.run(None, {name: rows[first : first + size]}) for first in range(0, items, size)]

    return timed_in_turns({str(size): in_batches(size) for size in sizes}, rounds, time.perf_counter)
