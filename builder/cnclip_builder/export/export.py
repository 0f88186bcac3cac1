"""From an encoder in PyTorch to its plain ONNX file in FP32, and the features that all files are compared with.

Imports torch: run it in a process of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.parity.probes import make_probes

logger = logging.getLogger(__name__)


def export_tower(checkpoint: Path, fp32: Artefact) -> None:
    """Writes an encoder's ONNX file in FP32, and PyTorch's features of the probes beside it.

    Args:
        checkpoint: the checkpoint's file.
        fp32: the artefact to write.

    Raises:
        CheckpointError: the checkpoint can't be used.
    """
    module = load_tower(load_checkpoint(checkpoint, fp32.arch), fp32.tower)
    logger.info("Computing PyTorch's features of the %s probes", fp32.tower)
    np.save(fp32.reference, encode(module, make_probes(fp32.arch).inputs(fp32.tower)))
    # Not before: while a checkpoint is loaded, memory is at its peak.
    from cnclip_builder.export.plain import write_plain_encoder

    logger.info("Writing the %s encoder", fp32.tower)
    write_plain_encoder(module.clip, fp32)
