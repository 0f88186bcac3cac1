"""The served encoder for ONNX Runtime on a GPU: the same weights, written as few operators from cn_clip's modules.

Imports torch: run it in a process of its own, and prove what it wrote in another.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import load_tower
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.files import SERVED_FILENAME, served_input

logger = logging.getLogger(__name__)


def write_fused_encoder(checkpoint: Path, artefact: Artefact, folder: Path) -> Path:
    """Writes `model.onnx` and its weights into a folder.

    Args:
        checkpoint: the checkpoint's file.
        artefact: which encoder, and its precision; `has_fused_form` holds for it.
        folder: where to; a version folder of a Triton model.

    Returns:
        The path of `model.onnx`.

    Raises:
        CheckpointError: the checkpoint can't be used.
    """
    arch, tower = artefact.arch, artefact.tower
    clip: Any = load_tower(load_checkpoint(checkpoint, arch), tower).clip
    # Not before: while a checkpoint is loaded, memory is at its peak.
    from cnclip_builder.export.fused_image import lower_image
    from cnclip_builder.export.fused_text import lower_text
    from cnclip_builder.export.graph_writer import GraphWriter

    logger.info("Writing the %s encoder for ONNX Runtime on a GPU", tower)
    path = folder / SERVED_FILENAME
    with GraphWriter(path, artefact.precision) as graph:
        if tower == "image":
            features = lower_image(graph, clip.visual, arch.resolution)
        else:
            features = lower_text(graph, clip.bert, clip.text_projection)
        graph.finish(arch, tower, served_input(arch, tower), features)
    return path
