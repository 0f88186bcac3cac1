"""The sidecar of an artefact: what it was made from, what it consists of and how well it was measured to fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cnclip_builder.export.artefact import Artefact
from cnclip_builder.int8.report import Int8Report
from cnclip_builder.parity.distance import Parity
from cnclip_builder.tensors import Precision, Tower


@dataclass(frozen=True)
class FileRecord:
    """A file of an artefact.

    Attributes:
        bytes: its size.
        sha256: its hex digest.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ArtefactRecord:
    """What an artefact's sidecar says.

    Attributes:
        tower: which encoder.
        precision: of its weights.
        opset: of the ONNX file.
        parity: with PyTorch, on the probes.
        files: by name.
        fingerprint: all that the artefact's bytes rest on: checkpoint, architecture, libraries, recipe.
        int8: how the conversion came out, of an INT8 artefact.
    """

    tower: Tower
    precision: Precision
    opset: int
    parity: Parity
    files: Mapping[str, FileRecord]
    fingerprint: Mapping[str, Any]
    int8: Int8Report | None = None

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON."""
        record = asdict(self)
        return record if self.int8 else {name: value for name, value in record.items() if name != "int8"}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ArtefactRecord:
        """Reads what `as_dict` gave.

        Raises:
            KeyError: something is missing.
            TypeError: something is of another kind.
        """
        return cls(
            tower=record["tower"],
            precision=record["precision"],
            opset=record["opset"],
            parity=Parity(**record["parity"]),
            files={name: FileRecord(**file) for name, file in record["files"].items()},
            fingerprint=record["fingerprint"],
            int8=Int8Report.from_dict(record["int8"]) if record.get("int8") else None,
        )


@dataclass(frozen=True)
class ProvedArtefact(Artefact):
    """An artefact that is there and holds its tolerance.

    Attributes:
        record: its sidecar's content.
        reused: it was there already, from the same checkpoint, libraries and recipe.
    """

    record: ArtefactRecord
    reused: bool

    @property
    def identity(self) -> str:
        """Tells it from the same encoder of another checkpoint, and from another making of it: 16 hex digits."""
        digest = hashlib.sha256(str(self.record.fingerprint.get("checkpoint_sha256")).encode())
        for name, file in sorted(self.record.files.items()):
            digest.update(f"{name} {file.sha256}".encode())
        return digest.hexdigest()[:16]
