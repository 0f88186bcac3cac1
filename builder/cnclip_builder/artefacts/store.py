"""The folder of artefacts: each is found again while nothing it rests on has changed, and added whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.record import ArtefactRecord, FileRecord, ProvedArtefact
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.files import OPSET
from cnclip_builder.int8.report import Int8Report
from cnclip_builder.parity.distance import Parity
from cnclip_builder.system.atomic import delete_partials, explaining_disk_errors, sha256_of_file
from cnclip_builder.tensors import Precision, Tower

logger = logging.getLogger(__name__)

# Raise it when the exporting code changes what it writes: older artefacts are then made again.
_RECIPE = 3

# The same for INT8 alone, and for what it is calibrated on.
_INT8_RECIPE = 2

_LIBRARIES = ("torch", "onnx", "onnxruntime", "cn_clip")


class ArtefactStore:
    """A folder of artefacts of one checkpoint, each with a sidecar that is written last and says what it is.

    Args:
        arch: the architecture.
        folder: where they are.
        checkpoint_sha256: of the checkpoint that they are made from.
    """

    def __init__(self, arch: Arch, folder: Path, checkpoint_sha256: str) -> None:
        self._arch = arch
        self._folder = folder
        # All that an artefact's bytes rest on.
        self._fingerprint: dict[str, Any] = {
            "recipe": _RECIPE,
            "opset": OPSET,
            "checkpoint_sha256": checkpoint_sha256,
            "arch": {"name": arch.name, **arch.model_info},
            # What probes and calibration are made of; cn_clip's comes with its version.
            **({"vocabulary": sha256_of_file(arch.vocabulary)} if arch.vocabulary else {}),
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }

    def place(self, tower: Tower, precision: Precision, work: Path | None = None) -> Artefact:
        """Where an artefact belongs; while it is made, in a work folder."""
        return Artefact(self._arch, tower, precision, work or self._folder)

    def find_sound(self, tower: Tower, precision: Precision) -> ArtefactRecord | None:
        """As `find`, for an artefact whose files are those that were written, to the byte: reads all of them."""
        record = self.find(tower, precision)
        if record is None:
            return None
        for name, file in record.files.items():
            if sha256_of_file(self._folder / name) != file.sha256:
                logger.warning("Not reusing %s: it was changed or damaged since it was written", self._folder / name)
                return None
        return record

    def find(self, tower: Tower, precision: Precision) -> ArtefactRecord | None:
        """Reads the sidecar of an artefact that is whole and up to date; None for any other."""
        try:
            sidecar = self.place(tower, precision).sidecar
            record = ArtefactRecord.from_dict(json.loads(sidecar.read_text(encoding="utf-8")))
            whole = all((self._folder / name).stat().st_size == file.bytes for name, file in record.files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return record if whole and record.fingerprint == self._fingerprint_of(precision) else None

    def get(self, tower: Tower, precision: Precision, *, reused: bool) -> ProvedArtefact:
        """Gives an artefact that is there.

        Raises:
            FileNotFoundError: it vanished since it was found or made.
        """
        record = self.find(tower, precision)
        if record is None:
            raise FileNotFoundError(f"{self.place(tower, precision).path} vanished")
        return ProvedArtefact(self._arch, tower, precision, self._folder, record, reused)

    def write_sidecar(self, made: Artefact, parity: Parity, int8: Int8Report | None = None) -> None:
        """Writes what was made and measured beside an artefact in its work folder."""
        files = [made.path, made.weights, *([made.reference] if made.precision == "fp32" else [])]
        record = ArtefactRecord(
            tower=made.tower,
            precision=made.precision,
            opset=OPSET,
            parity=parity,
            files={file.name: FileRecord(file.stat().st_size, sha256_of_file(file)) for file in files},
            fingerprint=self._fingerprint_of(made.precision),
            int8=int8,
        )
        made.sidecar.write_text(json.dumps(record.as_dict(), indent=2) + "\n", encoding="utf-8")

    def publish(self, made: Sequence[Artefact]) -> None:
        """Moves all that lies in the work folder of these artefacts into this one.

        Old sidecars go first and new ones come last, so that a sidecar never speaks of other files.
        """
        sidecars = {artefact.sidecar.name for artefact in made}
        for name in sidecars:
            (self._folder / name).unlink(missing_ok=True)
        for work in {artefact.folder for artefact in made}:
            for file in sorted(work.iterdir(), key=lambda file: file.name in sidecars):
                file.replace(self._folder / file.name)

    def discard(self, tower: Tower, precision: Precision) -> None:
        """Deletes an artefact that is there, its sidecar first."""
        old = self.place(tower, precision)
        for file in (old.sidecar, old.path, old.weights):
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A folder inside this one to make artefacts in; what is left in it on exit is deleted."""
        with explaining_disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            delete_partials(self._folder)
            work = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=self._folder))
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _fingerprint_of(self, precision: Precision) -> dict[str, Any]:
        return self._fingerprint | ({"int8_recipe": _INT8_RECIPE} if precision == "int8" else {})
