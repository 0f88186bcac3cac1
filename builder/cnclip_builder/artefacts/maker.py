"""The ONNX artefacts of a checkpoint: made, proved against PyTorch, and reused while nothing they rest on changes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.record import ProvedArtefact
from cnclip_builder.artefacts.store import ArtefactStore
from cnclip_builder.checkpoint.sources import Hub
from cnclip_builder.checkpoint.stage import CheckpointFacts, open_checkpoint
from cnclip_builder.errors import SlowerError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.stage import export_to_onnx, finish_artefact, limit_threads
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP
from cnclip_builder.int8.stage import make_int8_artefact
from cnclip_builder.system.atomic import require_writable
from cnclip_builder.system.isolation import StageProcess, stage_process
from cnclip_builder.system.machine import available_memory, usable_cores
from cnclip_builder.tensors import Precision, Tower

logger = logging.getLogger(__name__)

_PROCESS_BYTES = 10**9
"""What torch takes in a process besides weights."""

_FROM_FP32: tuple[Precision, ...] = ("fp16", "int8")

_Kind = tuple[Tower, Precision]


@dataclass(frozen=True)
class Artefacts:
    """What `build_artefacts` made or found.

    Attributes:
        checkpoint: what they were made from.
        items: an artefact for every encoder and precision asked for.
        slower: encoders of which no INT8 artefact was made, because it is not faster than FP32 here, and the figures.
    """

    checkpoint: CheckpointFacts
    items: tuple[ProvedArtefact, ...]
    slower: Mapping[Tower, str] = field(default_factory=dict)

    def get(self, tower: Tower, precision: Precision) -> ProvedArtefact:
        """Finds one of the items."""
        return next(item for item in self.items if (item.tower, item.precision) == (tower, precision))


def build_artefacts(
    arch: Arch,
    source: str | None,
    folder: Path,
    *,
    towers: Sequence[Tower],
    precisions: Sequence[Precision],
    download_root: Path,
    hub: Hub = "huggingface",
    least_int8_speed_up: float = LEAST_INT8_SPEED_UP,
) -> Artefacts:
    """Makes the artefacts that are missing or out of date. FP32 is always made, since the others are made from it.

    Args:
        arch: the architecture.
        source: the checkpoint: a path, "random:SEED", or None for the official one.
        folder: where the artefacts go, under the names that cn_clip's scripts use.
        towers: which encoders.
        precisions: which precisions.
        download_root: folder of downloaded and random checkpoints.
        hub: where official checkpoints are fetched from.
        least_int8_speed_up: how many times FP32's speed an INT8 artefact must reach on this machine.

    Raises:
        CheckpointError: the checkpoint can't be had or used.
        ParityError: an artefact differs from PyTorch beyond its tolerance; it is not kept.
        MissingRequirementError: the disk or the memory is too small.
    """
    require_writable(folder)
    made: list[Precision] = ["fp32", *(other for other in _FROM_FP32 if other in precisions)]
    wanted: list[_Kind] = [(tower, precision) for tower in towers for precision in made]
    with stage_process() as process:
        checkpoint = process.run(open_checkpoint, source, arch, download_root, hub)
        store = ArtefactStore(arch, folder, checkpoint.sha256)
        missing = [kind for kind in wanted if not _is_kept(store, kind, least_int8_speed_up)]
        for kind in wanted:
            if kind not in missing:
                logger.info("Reusing %s: nothing it rests on has changed", store.place(*kind).name)
        slower: dict[Tower, str] = {}
        if missing:
            store.require_space(sum(checkpoint.fp32_bytes[t] // (1 if p == "fp32" else 2) for t, p in missing))
            with store.work_folder() as work:
                exported = [store.place(tower, "fp32", work) for tower, precision in missing if precision == "fp32"]
                fp32_bytes = sum(checkpoint.fp32_bytes[artefact.tower] for artefact in exported)
                _export(exported, checkpoint.file.path, process, side_by_side=_may_share(len(exported), fp32_bytes))
                slower = _finish(store, missing, work, least_int8_speed_up)
    return Artefacts(
        checkpoint,
        tuple(
            store.get(tower, precision, reused=(tower, precision) not in missing)
            for tower, precision in wanted
            if precision in precisions and not (precision == "int8" and tower in slower)
        ),
        slower,
    )


def _is_kept(store: ArtefactStore, kind: _Kind, least_int8_speed_up: float) -> bool:
    """Whether an artefact is there, up to date, and in INT8 as fast as is asked for now."""
    record = store.find_sound(*kind)
    return record is not None and (record.int8 is None or record.int8.speed_up >= least_int8_speed_up)


def _may_share(exports: int, fp32_bytes: int) -> bool:
    """Whether encoders may be exported side by side: there are cores and memory for all.

    Args:
        exports: how many.
        fp32_bytes: size of their weights. A process takes up to twice that of its own, and 1 GB beside.
    """
    return exports > 1 and usable_cores() >= exports and available_memory() >= 2 * fp32_bytes + exports * _PROCESS_BYTES


def _export(wanted: Sequence[Artefact], checkpoint: Path, first: StageProcess, *, side_by_side: bool) -> None:
    """Exports encoders in FP32, each in a process that ends with it.

    Args:
        wanted: what to write.
        checkpoint: the checkpoint's file.
        first: a process that has imported torch already; it is ended.
        side_by_side: whether to export all at once. The cores are divided among them: with threads for all cores
            each, they would fight for them.
    """
    if side_by_side:
        threads = usable_cores() // len(wanted)

        def export(process: StageProcess, artefact: Artefact) -> None:
            process.run(limit_threads, threads)
            process.run(export_to_onnx, checkpoint, artefact)

        with contextlib.ExitStack() as stack:
            processes = [first, *(stack.enter_context(stage_process()) for _ in wanted[1:])]
            pool = stack.enter_context(ThreadPoolExecutor(len(wanted)))
            for exported in [pool.submit(export, *pair) for pair in zip(processes, wanted, strict=True)]:
                exported.result()
        first.close()
        return
    for artefact in wanted[:1]:
        first.run(export_to_onnx, checkpoint, artefact)
    first.close()
    for artefact in wanted[1:]:
        with stage_process() as process:
            process.run(export_to_onnx, checkpoint, artefact)


def _finish(store: ArtefactStore, missing: Sequence[_Kind], work: Path, least_int8_speed_up: float) -> dict[Tower, str]:
    """Makes what is missing from the exports in the work folder, proves it, and moves it into the store.

    Returns:
        The encoders of which INT8 is not faster, and why that is known.
    """
    slower: dict[Tower, str] = {}
    finished: list[Artefact] = []
    for tower, precision in missing:
        artefact = store.place(tower, precision, work)
        fp32 = store.place(tower, "fp32", work if (tower, "fp32") in missing else None)
        try:
            _prove(store, artefact, fp32, least_int8_speed_up)
            finished.append(artefact)
        except SlowerError as error:
            slower[tower] = str(error)
            for file in work.glob(artefact.name + "*"):
                file.unlink()
    store.publish(finished)
    return slower


def _prove(store: ArtefactStore, artefact: Artefact, fp32: Artefact, least_int8_speed_up: float) -> None:
    """Makes an artefact of its FP32 twin, unless it is that itself, proves it and writes its sidecar.

    Raises:
        SlowerError: in INT8 it is not as fast as it must be.
    """
    started = time.monotonic()
    with stage_process() as process:
        if artefact.precision == "int8":
            parity, int8 = process.run(make_int8_artefact, artefact, fp32, least_int8_speed_up)
        else:
            parity, int8 = process.run(finish_artefact, artefact, fp32), None
    measured = f"1 - cosine <= {parity.cosine_distance:.0e}"
    if int8:
        cosine = max(parity.cosine_distance, int8.parity.cosine_distance)
        centred = max(parity.centred_distance, int8.parity.centred_distance)
        measured = f"1 - cosine <= {cosine:.0e}, {centred:.1e} after centring, {int8.speed_up:.2f} times FP32's speed"
    logger.info("Proved %s: %s (%.0f s)", artefact.name, measured, time.monotonic() - started)
    store.write_sidecar(artefact, parity, int8)
