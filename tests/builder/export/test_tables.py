"""Rows of a text encoder's tables that no probe reaches, in each other's place: refused at every step of a build."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.errors import ParityError
from cnclip_builder.export import fp16 as fp16_module
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.check import check_artefact, check_served_encoder
from cnclip_builder.export.export import export_tower
from cnclip_builder.export.fp16 import convert_to_fp16
from cnclip_builder.export.graph_writer import GraphWriter
from cnclip_builder.export.served import write_served_encoder
from cnclip_builder.export.stage import finish_artefact, write_fused
from cnclip_builder.export.tables import Tables, read_tables, require_same_tables
from cnclip_builder.tensors import PRECISIONS, Precision

# Beyond the probes' characters, and beyond their 52 positions.
FAR = {"Gather": ("token", 20_000), "Slice": ("position", 60)}


def swap(path: Path, operator: str) -> str:
    """Exchanges a row of a table with the next one in an encoder's file of weights; gives how the error begins."""
    graph = onnx.load(path, load_external_data=False).graph
    read = {node.input[0] for node in graph.node if node.op_type == operator}
    (tensor,) = (one for one in graph.initializer if one.name in read and len(one.dims) == 2)
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    file = path.parent / place["location"]
    table = np.memmap(file, kind, "r+", int(place["offset"]), tuple(tensor.dims))
    what, row = FAR[operator]
    table[[row, row + 1]] = table[[row + 1, row]]
    table.flush()
    return f"{path.name}: what it has for {what} {row} is not what PyTorch has, and 1 more"


@pytest.mark.parametrize("operator", FAR)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_served(tiny_artefacts: Artefacts, tmp_path: Path, precision: Precision, operator: str) -> None:
    artefact = tiny_artefacts.get("text", precision)
    served = write_served_encoder(artefact, tmp_path, without_padding=True)
    check_served_encoder(served, artefact)
    message = swap(served, operator)
    with pytest.raises(ParityError, match=message):
        check_served_encoder(served, artefact)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fused(tiny_artefacts: Artefacts, tmp_path: Path, precision: Precision) -> None:
    """Written from the checkpoint again: what FP16 rounds on either way is near enough to see a row that is off."""
    artefact = tiny_artefacts.get("text", precision)
    fused = read_tables(write_fused(tiny_artefacts.checkpoint.file.path, artefact, tmp_path))
    require_same_tables(artefact.path, fused, read_tables(artefact.path))
    require_same_tables(artefact.path, fused, read_tables(tiny_artefacts.get("text", "fp32").path))


@pytest.mark.parametrize("operator", FAR)
def test_from_fp32_to_fp16(
    tiny_artefacts: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    made = tiny_artefacts.get("text", "fp32")
    fp32 = Artefact(made.arch, "text", "fp32", tmp_path)
    for file in (made.path, made.weights, made.reference):
        shutil.copy(file, tmp_path)

    def convert(one: Path, other: Path) -> None:
        convert_to_fp16(one, other)
        swap(other, operator)

    monkeypatch.setattr(fp16_module, "convert_to_fp16", convert)
    half = replace(fp32, precision="fp16")
    with pytest.raises(ParityError, match=rf"{half.name}: what it has for {FAR[operator][0]}"):
        finish_artefact(half, fp32)
    check_artefact(half, np.load(fp32.reference))  # to the probes it is as good as ever


@pytest.mark.parametrize("operator", FAR)
def test_from_pytorch_to_the_file(
    tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    what, row = FAR[operator]
    rows = tiny_vit.model_info["vocab_size" if what == "token" else "text_max_position_embeddings"]
    floats = GraphWriter.floats

    def swapping(self: GraphWriter, value: Any) -> str:
        if value.ndim == 2 and len(value) == rows:
            value = value.copy()
            value[[row, row + 1]] = value[[row + 1, row]]
        return floats(self, value)

    monkeypatch.setattr(GraphWriter, "floats", swapping)
    fp32 = Artefact(tiny_vit, "text", "fp32", tmp_path)
    with pytest.raises(ParityError, match=rf"what it has for {what} {row} is not what PyTorch has, and 1 more"):
        export_tower(tiny_artefacts.checkpoint.file.path, fp32)
    check_artefact(fp32, np.load(fp32.reference))  # to the probes it is as good as ever


def test_numbers_that_fp16_does_not_hold(tmp_path: Path) -> None:
    words = np.array([[1e6, 1e-9], [np.nan, -1e6], [1.0, 0.1]], np.float32)
    exact = Tables(words, words)
    rounded = Tables(fp16_module.round_to_fp16(words), fp16_module.round_to_fp16(words))
    require_same_tables(tmp_path, rounded, exact)
    require_same_tables(tmp_path, exact, exact)
    off = rounded.words.copy()
    off[2, 1] = 0.1003
    with pytest.raises(ParityError, match="token 2 is not"):
        require_same_tables(tmp_path, Tables(off, rounded.positions), exact)
    with pytest.raises(ParityError, match=r"a table of tokens \[2, 2\] instead of \[3, 2\]"):
        require_same_tables(tmp_path, Tables(words[:2], words), exact)
