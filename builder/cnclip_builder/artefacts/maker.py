"""The ONNX artefacts of a checkpoint: made, proved against PyTorch, and reused while nothing they rest on changes."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.record import ProvedArtefact
from cnclip_builder.artefacts.store import ArtefactStore
from cnclip_builder.checkpoint.sources import Hub
from cnclip_builder.checkpoint.stage import CheckpointFacts, open_checkpoint
from cnclip_builder.errors import ParityError, SlowerError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.stage import export_to_onnx, finish_artefact
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP
from cnclip_builder.int8.stage import make_int8_artefact
from cnclip_builder.system.atomic import require_space, require_writable
from cnclip_builder.system.isolation import stage_process
from cnclip_builder.system.side_by_side import run_jobs, threads_of_each
from cnclip_builder.tensors import TOWERS, Precision, Tower

logger = logging.getLogger(__name__)

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
    fp16_may_fail: bool = False,
    check: Callable[[CheckpointFacts, ArtefactPlan], None] = lambda facts, plan: None,
) -> Artefacts:
    """Makes the artefacts that are missing or out of date. FP32 is always made, since the others are made from it.

    Two of these at once in one folder would exchange each other's files: callers hold `system.atomic.locked`.

    Args:
        arch: the architecture.
        source: the checkpoint: a path, "random:SEED", or None for the official one.
        folder: where the artefacts go, under the names that cn_clip's scripts use.
        towers: which encoders.
        precisions: which precisions.
        download_root: folder of downloaded and random checkpoints.
        hub: where official checkpoints are fetched from.
        least_int8_speed_up: how many times FP32's speed an INT8 artefact must reach on this machine.
        fp16_may_fail: whether FP16 is left out, with a warning, of an encoder that it does not hold.
        check: raises what else speaks against it, once the checkpoint is known and nothing is made yet.

    Raises:
        CheckpointError: the checkpoint can't be had or used.
        ParityError: an artefact differs from PyTorch beyond its tolerance; it is not kept.
        MissingRequirementError: the disk or the memory is too small.
    """
    require_writable(folder)
    with stage_process() as process:
        checkpoint = process.run(open_checkpoint, source, arch, download_root, hub)
    plan = plan_artefacts(arch, checkpoint, folder, towers, precisions, least_int8_speed_up)
    check(checkpoint, plan)
    for kind in plan.kept:
        logger.info("Reusing %s: nothing it rests on has changed", plan.store.place(*kind).name)
    store, slower, there = plan.store, dict[Tower, str](), set(plan.kept)
    if plan.missing:
        with store.work_folder() as work:
            making = _Making(store, work, checkpoint, plan.missing, fp16_may_fail)
            in_floats = _make(making)
            in_int8, slower = _make_int8(making, least_int8_speed_up)
            made = [*in_floats, *in_int8]
            store.publish(made)
        there |= {(artefact.tower, artefact.precision) for artefact in made}
        for kind in set(plan.missing) - there:
            if store.find(*kind) is None:  # of another checkpoint; one of this is only slower than was asked for
                store.discard(*kind)
    return Artefacts(
        checkpoint,
        tuple(
            store.get(*kind, reused=kind in plan.kept)
            for kind in plan.wanted
            if kind[1] in precisions and kind in there
        ),
        slower,
    )


@dataclass(frozen=True)
class ArtefactPlan:
    """What there is of the artefacts that are asked for, and what is to be made.

    Attributes:
        store: where they are.
        wanted: all of them, FP32 among them, since the others are made from it.
        kept: those that are there and stay as they are.
        missing_bytes: how much disk the others take.
    """

    store: ArtefactStore
    wanted: tuple[_Kind, ...]
    kept: tuple[_Kind, ...]
    missing_bytes: int

    @property
    def missing(self) -> tuple[_Kind, ...]:
        """Those to make."""
        return tuple(kind for kind in self.wanted if kind not in self.kept)


def plan_artefacts(
    arch: Arch,
    checkpoint: CheckpointFacts | None,
    folder: Path,
    towers: Sequence[Tower],
    precisions: Sequence[Precision],
    least_int8_speed_up: float,
) -> ArtefactPlan:
    """Finds out what is to be made, and makes nothing; the arguments are those of `build_artefacts`.

    Args:
        arch: the architecture.
        checkpoint: None while it is not known, so that nothing can have been made of it.
        folder: where the artefacts are.
        towers: which encoders.
        precisions: which precisions.
        least_int8_speed_up: how many times FP32's speed an INT8 artefact must reach.

    Raises:
        MissingRequirementError: the disk is too small.
    """
    made: list[Precision] = ["fp32", *(other for other in _FROM_FP32 if other in precisions)]
    wanted: tuple[_Kind, ...] = tuple((tower, precision) for tower in towers for precision in made)
    store = ArtefactStore(arch, folder, checkpoint.sha256 if checkpoint else "")
    kept = tuple(kind for kind in wanted if checkpoint and _is_kept(store, kind, least_int8_speed_up))
    missing = [kind for kind in wanted if kind not in kept]
    needed = sum(bytes_of(checkpoint, *kind) for kind in missing) if checkpoint else 0
    if needed:
        require_space(folder, needed, "the ONNX files")
    return ArtefactPlan(store, wanted, kept, needed)


def bytes_of(checkpoint: CheckpointFacts, tower: Tower, precision: Precision) -> int:
    """About how much disk an encoder takes; INT8's keeps some of its weights in FP32."""
    return checkpoint.fp32_bytes[tower] // (1 if precision == "fp32" else 2)


def _is_kept(store: ArtefactStore, kind: _Kind, least_int8_speed_up: float) -> bool:
    """Whether an artefact is there, up to date, and in INT8 as fast as is asked for now."""
    record = store.find_sound(*kind)
    return record is not None and (record.int8 is None or record.int8.speed_up >= least_int8_speed_up)


@dataclass(frozen=True)
class _Making:
    """What the work on every encoder needs to know.

    Attributes:
        store: where artefacts that are there already are.
        work: the folder to make the missing ones in.
        checkpoint: what they are made from.
        missing: what to make.
        fp16_may_fail: whether FP16 that does not hold is left out.
    """

    store: ArtefactStore
    work: Path
    checkpoint: CheckpointFacts
    missing: Sequence[_Kind]
    fp16_may_fail: bool

    def precisions(self, tower: Tower) -> list[Precision]:
        """What to make of an encoder; INT8 comes later."""
        return [precision for of, precision in self.missing if of == tower and precision != "int8"]

    def place(self, tower: Tower, precision: Precision) -> Artefact:
        """Where an artefact is, or will be."""
        return self.store.place(tower, precision, self.work if (tower, precision) in self.missing else None)

    def drop(self, artefact: Artefact) -> None:
        """Deletes what was written of an artefact that is not to be had."""
        for file in self.work.glob(artefact.name + "*"):
            file.unlink()


def _make(making: _Making) -> list[Artefact]:
    """Makes and proves what is missing in FP32 and FP16, of both encoders side by side where the machine allows it."""
    towers = [tower for tower in TOWERS if making.precisions(tower)]
    threads = threads_of_each(len(towers), sum(making.checkpoint.fp32_bytes[tower] for tower in towers))
    jobs = [functools.partial(_make_tower, making, tower, threads) for tower in towers]
    return [artefact for made in run_jobs(jobs, side_by_side=threads > 0) for artefact in made]


def _make_tower(making: _Making, tower: Tower, threads: int) -> list[Artefact]:
    """Makes and proves what is missing of an encoder in FP32 and FP16.

    Args:
        making: what.
        tower: which encoder.
        threads: to compute with; 0 for all cores.
    """
    precisions, fp32 = making.precisions(tower), making.place(tower, "fp32")
    if "fp32" in precisions:
        # torch, and the weights that it read, go with its process.
        with making.checkpoint.still(), stage_process() as process:
            process.run(export_to_onnx, making.checkpoint.file.path, fp32, threads)
    made: list[Artefact] = []
    with stage_process() as process:
        for artefact in (making.place(tower, precision) for precision in precisions):
            started = time.monotonic()
            try:
                parity = process.run(finish_artefact, artefact, fp32, threads)
            except ParityError as error:
                if artefact.precision != "fp16" or not making.fp16_may_fail:
                    raise
                logger.warning("Leaving %s out, which nothing here needs: %s", artefact.name, error)
                making.drop(artefact)
                continue
            _tell(artefact, f"1 - cosine <= {parity.cosine_distance:.0e}", started)
            making.store.write_sidecar(artefact, parity)
            made.append(artefact)
    return made


def _make_int8(making: _Making, least_speed_up: float) -> tuple[list[Artefact], dict[Tower, str]]:
    """Makes and proves what is missing in INT8, one encoder after the other, since its speed is measured.

    Args:
        making: what; FP32 is there.
        least_speed_up: how many times FP32's speed it must reach.

    Returns:
        What was made; and the encoders of which INT8 is not faster, and why that is known.
    """
    made: list[Artefact] = []
    slower: dict[Tower, str] = {}
    for tower in (tower for tower, precision in making.missing if precision == "int8"):
        artefact, fp32 = making.place(tower, "int8"), making.place(tower, "fp32")
        started = time.monotonic()
        try:
            with stage_process() as process:
                parity, int8 = process.run(make_int8_artefact, artefact, fp32, least_speed_up)
        except SlowerError as error:
            slower[tower] = str(error)
            making.drop(artefact)
            continue
        cosine = max(parity.cosine_distance, int8.parity.cosine_distance)
        centred = max(parity.centred_distance, int8.parity.centred_distance)
        measured = f"1 - cosine <= {cosine:.0e}, {centred:.1e} after centring, {int8.speed_up:.2f} times FP32's speed"
        _tell(artefact, measured, started)
        making.store.write_sidecar(artefact, parity, int8)
        made.append(artefact)
    return made, slower


def _tell(artefact: Artefact, measured: str, started: float) -> None:
    logger.info("Proved %s: %s (%.0f s)", artefact.name, measured, time.monotonic() - started)
