"""The ONNX artefacts of a checkpoint: made, proved against PyTorch, and reused while nothing they rest on changes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch, Tower
from cnclip_builder.atomic import explaining_disk_errors, require_writable, sha256_of_file
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.isolation import stage_process
from cnclip_builder.onnx_files import OPSET, ExportJob, external_data_of, onnx_name
from cnclip_builder.parity import Precision
from cnclip_builder.sources import Hub
from cnclip_builder.stages import CheckpointFacts, export_to_onnx, finish_artefact, open_checkpoint

logger = logging.getLogger(__name__)

# Raise it when the exporting code changes what it writes: older artefacts are then made again.
_RECIPE = 2

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "cn_clip")

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
    """

    checkpoint: CheckpointFacts
    items: tuple[Artefact, ...]

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
) -> Artefacts:
    """Makes the artefacts that are missing or out of date. FP32 is always made, since FP16 is made from it.

    Args:
        arch: the architecture.
        source: the checkpoint: a path, "random:SEED", or None for the official one.
        folder: where the artefacts go, under the names that cn_clip's scripts use.
        towers: which encoders.
        precisions: which precisions.
        download_root: folder of downloaded and random checkpoints.
        hub: where official checkpoints are fetched from.

    Raises:
        CheckpointError: the checkpoint can't be had or used.
        ParityError: an artefact differs from PyTorch beyond its tolerance; it is not kept.
        MissingRequirementError: the disk or the memory is too small.
    """
    require_writable(folder)
    made: tuple[Precision, ...] = ("fp32", "fp16") if "fp16" in precisions else ("fp32",)
    wanted: list[Kind] = [(tower, precision) for tower in towers for precision in made]
    with stage_process() as process:
        checkpoint = process.run(open_checkpoint, source, arch, download_root, hub)
    store = _Store(arch, folder, _fingerprint(arch, checkpoint.sha256))
    missing = [kind for kind in wanted if store.read(*kind) is None]
    for kind in wanted:
        if kind not in missing:
            logger.info("Reusing %s: nothing it rests on has changed", onnx_name(arch, *kind))
    if missing:
        _require_disk_space(folder, checkpoint, missing)
        with _work_folder(folder) as work:
            store.make(missing, checkpoint, work)
    return Artefacts(
        checkpoint,
        tuple(store.artefact(*kind, reused=kind not in missing) for kind in wanted if kind[1] in precisions),
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
            return record if whole and record["fingerprint"] == self._fingerprint else None
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

    def make(self, missing: Sequence[Kind], checkpoint: CheckpointFacts, work: Path) -> None:
        """Makes and proves artefacts in the work folder, then moves them into this one."""
        for tower, precision in missing:
            if precision == "fp32":
                self._export(tower, checkpoint, work)
        for tower, precision in missing:
            self._finish(tower, precision, work, exported=work if (tower, "fp32") in missing else self._folder)
        self._publish(missing, work)

    def _export(self, tower: Tower, checkpoint: CheckpointFacts, work: Path) -> None:
        job = ExportJob(
            checkpoint=checkpoint.file.path,
            arch=self._arch,
            tower=tower,
            onnx=work / onnx_name(self._arch, tower, "fp32"),
            reference=work / self._reference_name(tower),
        )
        with stage_process() as process:
            process.run(export_to_onnx, job)

    def _finish(self, tower: Tower, precision: Precision, work: Path, *, exported: Path) -> None:
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

    def _write_sidecar(self, tower: Tower, precision: Precision, work: Path, parity: dict[str, Any]) -> None:
        made = work / onnx_name(self._arch, tower, precision)
        files = [made, external_data_of(made)]
        if precision == "fp32":
            files.append(work / self._reference_name(tower))
        record = {
            "tower": tower,
            "precision": precision,
            "opset": OPSET,
            "parity": parity,
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
                for file in files
                if file.exists()
            },
            "fingerprint": self._fingerprint,
        }
        sidecar = work / self._sidecar_name(tower, precision)
        sidecar.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _publish(self, missing: Sequence[Kind], work: Path) -> None:
        # Old sidecars go first and new ones come last, so that a sidecar never speaks of other files.
        sidecars = {self._sidecar_name(*kind) for kind in missing}
        for name in sidecars:
            (self._folder / name).unlink(missing_ok=True)
        for file in sorted(work.iterdir(), key=lambda file: file.name in sidecars):
            file.chmod(0o644)  # tritonserver may run as another user
            file.replace(self._folder / file.name)

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
