"""One encoder in ONNX: which it is, and the files that it consists of, named as cn_clip's own scripts name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnclip_builder.arch import Arch
from cnclip_builder.export.files import external_data_of, onnx_name
from cnclip_builder.tensors import Precision, Tower


@dataclass(frozen=True)
class Artefact:
    """An encoder's ONNX file and what lies beside it, there or yet to be made.

    Attributes:
        arch: the architecture.
        tower: which encoder.
        precision: of its weights and inner values; inputs and outputs are float32 or integers.
        folder: where its files are.
    """

    arch: Arch
    tower: Tower
    precision: Precision
    folder: Path

    @property
    def name(self) -> str:
        """Of the ONNX file: "vit-b-16.img.fp32.onnx"."""
        return onnx_name(self.arch, self.tower, self.precision)

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / self.name

    @property
    def weights(self) -> Path:
        """The file of weights beside it."""
        return external_data_of(self.path)

    @property
    def reference(self) -> Path:
        """PyTorch's features of the probes, .npy float32 `[N, D]`: one file for all precisions."""
        stem = onnx_name(self.arch, self.tower, "fp32").removesuffix(".fp32.onnx")
        return self.folder / f"{stem}.reference.npy"

    @property
    def sidecar(self) -> Path:
        """The record of what it was made from and how well it was measured to fit; written last."""
        return self.path.with_suffix(".json")

    @property
    def identity(self) -> str:
        """Tells its weights from another checkpoint's of the architecture; "" while they are not known."""
        return ""
