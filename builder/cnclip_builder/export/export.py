"""From an encoder in PyTorch to its plain ONNX file in FP32, and the features that all files are compared with.

Imports torch: run it in a process of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import CheckpointError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.tensors import Tower

logger = logging.getLogger(__name__)


def export_tower(checkpoint: Path, fp32: Artefact) -> None:
    """Writes an encoder's ONNX file in FP32, and PyTorch's features of the probes beside it.

    Args:
        checkpoint: the checkpoint's file.
        fp32: the artefact to write.

    Raises:
        CheckpointError: the checkpoint can't be used, or PyTorch itself gets no features out of it.
        ParityError: a text encoder's file has other embeddings of tokens or positions than PyTorch.
    """
    module = load_tower(load_checkpoint(checkpoint, fp32.arch), fp32.tower)
    clip: Any = module.clip
    logger.info("Computing PyTorch's features of the %s probes", fp32.tower)
    reference = encode(module, make_probes(fp32.arch).inputs(fp32.tower))
    _require_features(checkpoint, fp32.tower, reference, module)
    np.save(fp32.reference, reference)
    # Not before: while a checkpoint is loaded, memory is at its peak.
    from cnclip_builder.export.plain import write_plain_encoder
    from cnclip_builder.export.tables import read_tables, require_same_tables, tables_of_module

    logger.info("Writing the %s encoder", fp32.tower)
    write_plain_encoder(clip, fp32)
    if fp32.tower == "text":
        require_same_tables(fp32.path, read_tables(fp32.path), tables_of_module(clip.bert.embeddings))


def _require_features(
    checkpoint: Path, tower: Tower, features: npt.NDArray[np.float32], module: torch.nn.Module
) -> None:
    """Refuses a model whose own features are none, of which no file could be proved.

    Raises:
        CheckpointError: naming what is wrong, and where in the weights if they show it.
    """
    if np.isfinite(features).all() and (np.linalg.norm(features, axis=1) > 0).all():
        return
    what = "NaN or infinite" if not np.isfinite(features).all() else "zero"
    beyond = [
        name.removeprefix("clip.")
        for name, value in module.named_parameters()
        if not value.is_meta and not value.isfinite().all()
    ]
    where = f"; cn_clip rounds weights to FP16, and numbers of {beyond[0]} are beyond it" if beyond else ""
    raise CheckpointError(
        f"{checkpoint}: its {tower} features are {what} in PyTorch itself{where}: take a checkpoint from before its "
        "training went astray, or mend its weights"
    )
