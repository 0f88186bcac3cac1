"""The ONNX artefacts of a checkpoint: made, proved against PyTorch, and reused while nothing they rest on changes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch, Tower
from cnclip_builder.checkpoint.sources import Hub
from cnclip_builder.errors import MissingRequirementError, SlowerError
from cnclip_builder.export.files import OPSET, ExportJob, external_data_of, onnx_name
from cnclip_builder.parity.distance import Precision
from cnclip_builder.stages import (
    CheckpointFacts,
    export_to_onnx,
    finish_artefact,
    make_int8_artefact,
    open_checkpoint,
)
from cnclip_builder.system.atomic import explaining_disk_errors, require_writable, sha256_of_file
from cnclip_builder.system.isolation import StageProcess, stage_process
from cnclip_builder.system.machine import LEAST_INT8_SPEED_UP

logger = logging.getLogger(__name__)

# Raise it when the exporting code changes what it writes: older artefacts are then made again.
_RECIPE = 2

# The same for INT8 alone, and for what it is calibrated on.
_INT8_RECIPE = 1

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "cn_clip")

_FROM_FP32: tuple[Precision, ...] = ("fp16", "int8")

Kind = tuple[Tower, Precision]


@dataclass(frozen=True)
class Artefact:
    """One encoder in ONNX that holds its tolerance.

    Attributes:
        tower: which encoder.
        precision: of its weights and inner values; inputs and outputs are float32 or integers.
        path: the .onnx file; its weights are beside it.
        reference: PyTorch's features of the probes, .npy.
        record: its sidecar's content: opset, parity, files with sizes and hashes, and its fingerprint.
        reused: it was there already, from the same checkpoint, libraries and recipe.
    """

    tower: Tower
    precision: Precision
    path: Path
    reference: Path
    record: dict[str, Any]
    reused: bool


@dataclass(frozen=True)
class Artefacts:
    """What `build_artefacts` made or found.

    Attributes:
        checkpoint: what they were made from.
        items: an artefact for every encoder and precision asked for.
        slower: encoders of which no INT8 artefact was made, because it is not faster than FP32 here, and the figures.
    """

    checkpoint: CheckpointFacts
    items: tuple[Artefact, ...]
    slower: Mapping[Tower, str] = field(default_factory=dict)

    def get(self, tower: Tower, precision: Precision) -> Artefact:
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
    wanted: list[Kind] = [(tower, precision) for tower in towers for precision in made]
    with stage_process() as process:
        checkpoint = process.run(open_checkpoint, source, arch, download_root, hub)
        store = _Store(arch, folder, _fingerprint(arch, checkpoint.sha256))
        missing = [kind for kind in wanted if not _usable(store.read(*kind), least_int8_speed_up)]
        for kind in wanted:
            if kind not in missing:
                logger.info("Reusing %s: nothing it rests on has changed", onnx_name(arch, *kind))
        slower: dict[Tower, str] = {}
        if missing:
            _require_disk_space(folder, checkpoint, missing)
            with _work_folder(folder) as work:
                exported = [tower for tower, precision in missing if precision == "fp32"]
                store.export(exported, checkpoint, work, process)
                slower = store.make(missing, work, least_int8_speed_up)
    return Artefacts(
        checkpoint,
        tuple(
            store.artefact(tower, precision, reused=(tower, precision) not in missing)
            for tower, precision in wanted
            if precision in precisions and not (precision == "int8" and tower in slower)
        ),
        slower,
    )


def _usable(record: dict[str, Any] | None, least_int8_speed_up: float) -> bool:
    return (
        record is not None and record.get("int8", {"speed_up": least_int8_speed_up})["speed_up"] >= least_int8_speed_up
    )


class _Store:
    """A folder of artefacts, each with a JSON sidecar that is written last and says what the artefact is."""

    def __init__(self, arch: Arch, folder: Path, fingerprint: dict[str, Any]) -> None:
        self._arch = arch
        self._folder = folder
        self._fingerprint = fingerprint

    def read(self, tower: Tower, precision: Precision) -> dict[str, Any] | None:
        """Reads the sidecar of an artefact that is whole and up to date."""
        try:
            sidecar = self._folder / self._sidecar_name(tower, precision)
            record: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))
            whole = all((self._folder / name).stat().st_size == file["bytes"] for name, file in record["files"].items())
            return record if whole and record["fingerprint"] == self._fingerprint_of(precision) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def artefact(self, tower: Tower, precision: Precision, *, reused: bool) -> Artefact:
        record = self.read(tower, precision)
        if record is None:
            raise FileNotFoundError(f"{self._folder / onnx_name(self._arch, tower, precision)} vanished")
        return Artefact(
            tower=tower,
            precision=precision,
            path=self._folder / onnx_name(self._arch, tower, precision),
            reference=self._folder / self._reference_name(tower),
            record=record,
            reused=reused,
        )

    def export(self, towers: Sequence[Tower], checkpoint: CheckpointFacts, work: Path, first: StageProcess) -> None:
        """Exports encoders in FP32 into the work folder, each in a process that ends with it.

        Args:
            towers: which.
            checkpoint: what they are of.
            work: the folder.
            first: a process that has imported torch already; it is ended.
        """
        for tower in towers[:1]:
            self._export(tower, checkpoint, work, first)
        first.close()
        for tower in towers[1:]:
            with stage_process() as process:
                self._export(tower, checkpoint, work, process)

    def make(self, missing: Sequence[Kind], work: Path, least_int8_speed_up: float) -> dict[Tower, str]:
        """Makes what is missing from the exports in the work folder, proves it, and moves all into this one.

        Returns:
            The encoders of which INT8 is not faster, and why that is known.
        """
        slower: dict[Tower, str] = {}
        for tower, precision in missing:
            exported = work if (tower, "fp32") in missing else self._folder
            if precision != "int8":
                self._finish(tower, precision, work, exported)
                continue
            try:
                self._finish_int8(tower, work, exported, least_int8_speed_up)
            except SlowerError as error:
                slower[tower] = str(error)
                for file in work.glob(onnx_name(self._arch, tower, precision) + "*"):
                    file.unlink()
        self._publish([kind for kind in missing if not (kind[1] == "int8" and kind[0] in slower)], work)
        return slower

    def _export(self, tower: Tower, checkpoint: CheckpointFacts, work: Path, process: StageProcess) -> None:
        job = ExportJob(
            checkpoint=checkpoint.file.path,
            arch=self._arch,
            tower=tower,
            onnx=work / onnx_name(self._arch, tower, "fp32"),
            reference=work / self._reference_name(tower),
        )
        process.run(export_to_onnx, job)

    def _finish_int8(self, tower: Tower, work: Path, exported: Path, least_speed_up: float) -> None:
        started = time.monotonic()
        name = onnx_name(self._arch, tower, "int8")
        with stage_process() as process:
            parity, report = process.run(
                make_int8_artefact,
                work / name,
                exported / onnx_name(self._arch, tower, "fp32"),
                exported / self._reference_name(tower),
                self._arch,
                tower,
                least_speed_up,
            )
        logger.info(
            "Proved %s: 1 - cosine <= %.0e, %.1e after centring, %.2f times FP32's speed (%.0f s)",
            name,
            max(parity.cosine_distance, report["parity"]["cosine_distance"]),
            max(parity.centred_distance, report["parity"]["centred_distance"]),
            report["speed_up"],
            time.monotonic() - started,
        )
        self._write_sidecar(tower, "int8", work, parity.as_dict(), int8=report)

    def _finish(self, tower: Tower, precision: Precision, work: Path, exported: Path) -> None:
        started = time.monotonic()
        name = onnx_name(self._arch, tower, precision)
        with stage_process() as process:
            parity = process.run(
                finish_artefact,
                work / name,
                exported / onnx_name(self._arch, tower, "fp32"),
                exported / self._reference_name(tower),
                self._arch,
                tower,
                precision,
            )
        seconds = time.monotonic() - started
        logger.info("Proved %s: 1 - cosine <= %.0e (%.0f s)", name, parity.cosine_distance, seconds)
        self._write_sidecar(tower, precision, work, parity.as_dict())

    def _write_sidecar(
        self, tower: Tower, precision: Precision, work: Path, parity: dict[str, Any], **more: Any
    ) -> None:
        made = work / onnx_name(self._arch, tower, precision)
        files = [made, external_data_of(made)]
        if precision == "fp32":
            files.append(work / self._reference_name(tower))
        record = {
            "tower": tower,
            "precision": precision,
            "opset": OPSET,
            "parity": parity,
            **more,
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
                for file in files
                if file.exists()
            },
            "fingerprint": self._fingerprint_of(precision),
        }
        sidecar = work / self._sidecar_name(tower, precision)
        sidecar.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _publish(self, made: Sequence[Kind], work: Path) -> None:
        # Old sidecars go first and new ones come last, so that a sidecar never speaks of other files.
        sidecars = {self._sidecar_name(*kind) for kind in made}
        for name in sidecars:
            (self._folder / name).unlink(missing_ok=True)
        for file in sorted(work.iterdir(), key=lambda file: file.name in sidecars):
            file.chmod(0o644)  # tritonserver may run as another user
            file.replace(self._folder / file.name)

    def _fingerprint_of(self, precision: Precision) -> dict[str, Any]:
        return self._fingerprint | ({"int8_recipe": _INT8_RECIPE} if precision == "int8" else {})

    def _sidecar_name(self, tower: Tower, precision: Precision) -> str:
        return onnx_name(self._arch, tower, precision).removesuffix(".onnx") + ".json"

    def _reference_name(self, tower: Tower) -> str:
        return onnx_name(self._arch, tower, "fp32").removesuffix(".fp32.onnx") + ".reference.npy"


def _fingerprint(arch: Arch, checkpoint_sha256: str) -> dict[str, Any]:
    """All that an artefact's bytes rest on."""
    return {
        "recipe": _RECIPE,
        "opset": OPSET,
        "checkpoint_sha256": checkpoint_sha256,
        "arch": {"name": arch.name, **arch.model_info},
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    with explaining_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=folder))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _require_disk_space(folder: Path, checkpoint: CheckpointFacts, missing: Sequence[Kind]) -> None:
    needed = sum(checkpoint.fp32_bytes[tower] // (1 if precision == "fp32" else 2) for tower, precision in missing)
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MissingRequirementError(
            f"{folder} needs {needed / 1e9:.1f} GB of disk for the ONNX files and {free / 1e9:.1f} GB are free: "
            "free some space, or choose a folder on another disk"
        )
