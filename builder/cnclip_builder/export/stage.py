"""The stages from PyTorch to ONNX, each to be run in a process of its own: naming them costs no torch and no onnx."""

from __future__ import annotations

from pathlib import Path

from cnclip_builder.export.artefact import Artefact
from cnclip_builder.parity.distance import Parity


def export_to_onnx(checkpoint: Path, fp32: Artefact, threads: int) -> None:
    """Exports an encoder in FP32, computing with so many threads (0: all cores); imports torch. See `export_tower`."""
    import torch

    from cnclip_builder.export.export import export_tower

    if threads:
        torch.set_num_threads(threads)
    export_tower(checkpoint, fp32)


def finish_artefact(made: Artefact, fp32: Artefact, threads: int = 0) -> Parity:
    """Converts to FP16 if that is asked for, and proves the artefact; imports onnx and onnxruntime.

    Args:
        made: the artefact to prove, and in FP16 to write first.
        fp32: its FP32 twin, with PyTorch's features of the probes.
        threads: to compute with; 0 for all cores.

    Raises:
        ParityError: it differs from PyTorch beyond its tolerance.
    """
    import numpy as np

    from cnclip_builder.export.check import check_artefact
    from cnclip_builder.export.tables import read_tables, require_same_tables

    if made.precision == "fp16":
        from cnclip_builder.export.fp16 import convert_to_fp16

        convert_to_fp16(fp32.path, made.path)
    if made.tower == "text" and made.precision != "fp32":  # which was compared with PyTorch when it was written
        require_same_tables(made.path, read_tables(made.path), read_tables(fp32.path))
    return check_artefact(made, np.load(fp32.reference), threads)


def write_served(artefact: Artefact, folder: Path, *, without_padding: bool) -> Path:
    """Writes a served encoder into its version folder; imports onnx. See `write_served_encoder`."""
    from cnclip_builder.export.served import write_served_encoder

    return write_served_encoder(artefact, folder, without_padding=without_padding)


def write_fused(checkpoint: Path, artefact: Artefact, folder: Path) -> Path:
    """Writes an encoder for ONNX Runtime on a GPU into its version folder; imports torch. See `write_fused_encoder`."""
    from cnclip_builder.export.fused import write_fused_encoder

    return write_fused_encoder(checkpoint, artefact, folder)


def prove_served(served: Path, artefact: Artefact, threads: int) -> Parity:
    """Proves a served encoder's file, computing with so many threads (0: all cores); imports onnxruntime.

    See `check_served_encoder`.

    Raises:
        ParityError: its features differ from PyTorch's beyond the tolerance.
    """
    from cnclip_builder.export.check import check_served_encoder

    return check_served_encoder(served, artefact, threads)
