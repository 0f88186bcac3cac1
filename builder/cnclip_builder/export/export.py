"""From an encoder in PyTorch to ONNX in FP32.

Imports torch, and torch's exporter holds on to an encoder's tensors after its work: run each export in a process of
its own.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.class_token import compute_class_token_only
from cnclip_builder.export.files import EXTERNAL_DATA_SUFFIX, OPSET, point_external_data
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.tensors import TENSORS, Tower

logger = logging.getLogger(__name__)


def export_tower(checkpoint: Path, fp32: Artefact) -> None:
    """Exports an encoder to ONNX in FP32 and writes PyTorch's features of the probes beside it.

    Args:
        checkpoint: the checkpoint's file.
        fp32: the artefact to write.

    Raises:
        CheckpointError: the checkpoint can't be used.
    """
    module = load_tower(load_checkpoint(checkpoint, fp32.arch), fp32.tower)
    logger.info("Computing PyTorch's features of the %s probes", fp32.tower)
    np.save(fp32.reference, encode(module, make_probes(fp32.arch).inputs(fp32.tower)))
    logger.info("Exporting the %s encoder", fp32.tower)
    compute_class_token_only(module.clip)
    _export(module, fp32.tower, fp32.arch.resolution, fp32.path)


def _export(module: torch.nn.Module, tower: Tower, resolution: int, path: Path) -> None:
    names = TENSORS[tower]
    # A batch of 2: the exporter takes a size of 1 for a constant.
    if tower == "image":
        example = torch.zeros(2, 3, resolution, resolution)
        dynamic_shapes = ({0: "batch"},)
    else:
        example = torch.ones(2, 8, dtype=torch.int64)
        dynamic_shapes = ({0: "batch", 1: "length"},)
    with _quiet_exporter(), _without_collector():
        torch.onnx.export(
            module,
            (example,),
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=True,
            dynamic_shapes=dynamic_shapes,
            input_names=[names.input],
            output_names=[names.unnormalised],
            verbose=False,
        )
    _tidy(path)


def _tidy(path: Path) -> None:
    """Gives the weights' file cn_clip's name, and takes out the exporter's stack traces, which hold local paths."""
    import onnx  # not before: while a checkpoint is loaded, memory is at its peak

    data = path.with_name(path.name + ".data")
    data.rename(path.with_name(path.name + EXTERNAL_DATA_SUFFIX))
    model = onnx.load(path, load_external_data=False)
    point_external_data(model, path.name + EXTERNAL_DATA_SUFFIX)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    holders: list[Any] = [model, model.graph, *model.graph.input, *model.graph.output, *model.graph.initializer]
    for holder in holders:
        del holder.metadata_props[:]
    del model.graph.value_info[:]  # ONNX Runtime infers them; the exporter's are most of the file
    onnx.save_model(model, path)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's chatter from the user: none of it is about their checkpoint."""
    talkative = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in talkative]
    for log in talkative:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(talkative, levels, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Stops Python's garbage collector: it goes through the exporter's objects again and again, a quarter of its time.

    What is left uncollected was seen to take 13 MB for ViT-B-16's images.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
