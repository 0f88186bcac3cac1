"""The plain ONNX files, written from cn_clip's modules: PyTorch's features, in ONNX's own operators, for every kind."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import ParityError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.check import check_artefact, open_session
from cnclip_builder.export.export import export_tower
from cnclip_builder.export.fp16 import convert_to_fp16
from cnclip_builder.export.plain import write_plain_encoder
from cnclip_builder.parity.distance import TOLERANCES, check_parity, measure_parity
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.plans.lowering import lower_opset
from cnclip_builder.tensors import TENSORS, TOWERS, Tower

from tests.conftest import TINY_RESNET, TINY_VIT

RNG = np.random.default_rng(11)
Encode = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]

# Of each kind, what an encoder is not made of otherwise.
KINDS: Mapping[str, tuple[Tower, Mapping[str, Any]]] = {
    "vit": ("image", TINY_VIT),
    "a patch's rest is cut off": ("image", {**TINY_VIT, "image_resolution": 36}),
    "patches of 14": ("image", {**TINY_VIT, "image_resolution": 42, "vision_patch_size": 14}),
    "narrow heads": ("image", {**TINY_VIT, "vision_head_width": 16}),
    "one block": ("image", {**TINY_VIT, "vision_layers": 1}),
    "resnet": ("image", TINY_RESNET),
    "deeper resnet": ("image", {**TINY_RESNET, "vision_layers": [1, 2, 3, 2], "vision_width": 16}),
    "resnet of 96": ("image", {**TINY_RESNET, "image_resolution": 96, "vision_head_width": 32}),
    "roberta": ("text", TINY_VIT),
    "one layer": ("text", {**TINY_VIT, "text_num_hidden_layers": 1}),
    "four heads": ("text", {**TINY_VIT, "text_num_attention_heads": 4}),
    **{f"text of {act}": ("text", {**TINY_VIT, "text_hidden_act": act}) for act in ("gelu_new", "swish", "relu")},
}


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artefact, Encode]:
    """An encoder's plain file, and PyTorch's own encoder. Nothing in the weights is 0 or 1 that a bias or factor hides.

    It is written where torch's own exporter could not be imported, which costs a second.
    """
    folder = tmp_path_factory.mktemp("plain")
    tower, sizes = KINDS[request.param]
    (folder / "arch.json").write_text(json.dumps(sizes), encoding="utf-8")
    arch = get_arch(str(folder / "arch.json"))
    torch.manual_seed(5)
    weights = CLIP(**arch.model_info).state_dict()
    # Large ones would give all images of a random ResNet the same features.
    bias = 0.3 if isinstance(sizes["vision_layers"], int) else 0.01
    for name, value in weights.items():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5) if name.endswith(("weight", "running_var")) else value.normal_(std=bias)
        if name == "visual.attnpool.positional_embedding":
            value *= bias
    torch.save({"state_dict": weights}, folder / "weights.pt")
    artefact = Artefact(arch, tower, "fp32", folder)
    with pytest.MonkeyPatch.context() as without:
        for module in ("onnxscript", "onnx_ir"):
            without.setitem(sys.modules, module, None)
        export_tower(folder / "weights.pt", artefact)
    module = load_tower(load_checkpoint(folder / "weights.pt", arch), tower)
    return artefact, lambda rows: encode(module, rows)


def inputs_of(arch: Arch, tower: Tower) -> list[npt.NDArray[Any]]:
    """Batches of several sizes; texts of every length and padding, one of padding alone among them."""
    if tower == "image":
        images = []
        for rows in (1, 2, 5):
            noise = RNG.standard_normal((rows, 3, arch.resolution, arch.resolution))
            # Of noise alone a ResNet makes one feature; coloured and cut at another place, each is another image.
            noise += 2 * RNG.standard_normal((rows, 3, 1, 1))
            for row in noise:
                row[:, : RNG.integers(arch.resolution)] *= 3
            images.append(noise.astype(np.float32))
        return images
    batches = []
    for lengths, padded_to in (((3, 52, 17, 0), 52), ((9,), 9), ((1,), 1), ((80, 2), 80)):
        ids = np.zeros((len(lengths), padded_to), dtype=np.int64)
        for row, length in zip(ids, lengths, strict=True):
            row[:length] = RNG.integers(100, 8000, length)
        batches.append(ids)
    return batches


def features(path: Path, tower: Tower) -> Encode:
    session, names = open_session(path), TENSORS[tower]

    def run(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = session.run([names.unnormalised], {names.input: rows})[0]
        return result

    return run


def test_features_are_pytorchs(written: tuple[Artefact, Encode]) -> None:
    artefact, pytorch = written
    encoder = features(artefact.path, artefact.tower)
    for rows in inputs_of(artefact.arch, artefact.tower):
        expected = pytorch(rows)
        check_parity(f"{rows.shape}", encoder(rows), expected, TOLERANCES["fp32"])
        np.testing.assert_allclose(encoder(rows), expected, rtol=1e-4, atol=2e-5)


def test_its_proof_and_its_fp16_twin(written: tuple[Artefact, Encode]) -> None:
    artefact, _ = written
    reference = np.load(artefact.reference)
    check_artefact(artefact, reference)
    half = replace(artefact, precision="fp16")
    convert_to_fp16(artefact.path, half.path)
    if artefact.tower == "text" or isinstance(artefact.arch.model_info["vision_layers"], int):
        check_artefact(half, reference)
    else:  # what images of a random ResNet do not have in common is as little as FP16's rounding
        probes = make_probes(artefact.arch).image
        assert measure_parity(features(half.path, "image")(probes), reference).cosine_distance < 1e-6


def test_weights_that_are_off_by_more_than_rounding_are_refused(
    written: tuple[Artefact, Encode], tmp_path: Path
) -> None:
    """By 4 parts in 10,000, which takes features by some 1e-7: two weights in each other's place take them by as much."""
    artefact, _ = written
    reference = np.load(artefact.reference)
    model = onnx.load(artefact.path)
    products = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in products and len(tensor.dims) == 2][-1]
    values = onnx.numpy_helper.to_array(weights)
    off = values * (1 + 4e-4 * RNG.choice([-1, 1], values.shape))
    weights.CopyFrom(onnx.numpy_helper.from_array(off.astype(np.float32), weights.name))
    wrong = replace(artefact, folder=tmp_path)
    onnx.save_model(model, wrong.path)
    with pytest.raises(ParityError, match="at most 1e-08 passes"):
        check_artefact(wrong, reference)


def test_any_runtime_reads_it(written: tuple[Artefact, Encode], tmp_path: Path) -> None:
    """ONNX's own operators of opset 18, each of which can be written in opset 17 and 16, as older TensorRTs want."""
    artefact, pytorch = written
    onnx.checker.check_model(str(artefact.path), full_check=True)
    model = onnx.load(artefact.path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert model.ir_version <= 9
    rows = inputs_of(artefact.arch, artefact.tower)[0]
    for opset in (17, 16):
        model = onnx.load(artefact.path)
        lower_opset(model, opset)
        onnx.save_model(model, tmp_path / "lowered.onnx")
        lowered = features(tmp_path / "lowered.onnx", artefact.tower)(rows)
        check_parity(f"opset {opset}", lowered, pytorch(rows), TOLERANCES["fp32"])


def test_names_tell_where_a_node_belongs(written: tuple[Artefact, Encode]) -> None:
    artefact, _ = written
    graph = onnx.load(artefact.path, load_external_data=False).graph
    names = [node.name for node in graph.node] + [tensor.name for tensor in graph.initializer]
    assert len(set(names)) == len(names)
    parts = Counter(name.rpartition(".")[0] for name in names)
    assert "" not in parts
    # All that a block is made of, in each.
    blocks = [parts[part] for part in parts if part.startswith(("resblocks.", "layer."))]
    assert all(count >= 30 for count in blocks)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_last_block_computes_the_class_token_alone(tiny_vit: Arch, tmp_path: Path, tower: Tower) -> None:
    artefact = Artefact(tiny_vit, tower, "fp32", tmp_path)
    torch.manual_seed(0)
    write_plain_encoder(CLIP(**tiny_vit.model_info).eval(), artefact)
    model = onnx.load(artefact.path)
    for tensor in model.graph.input:
        tensor.type.tensor_type.shape.dim[0].dim_value = 3
        if tower == "text":
            tensor.type.tensor_type.shape.dim[1].dim_value = 7
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    part = "resblocks.{}." if tower == "image" else "layer.{}."
    tokens = {
        number: [
            shapes[node.output[0]][1]
            for node in graph.node
            if node.name.startswith(part.format(number)) and node.op_type == "LayerNormalization"
        ]
        for number in (0, 1)
    }
    every = 17 if tower == "image" else 7
    # A ViT norms before attention, where all tokens are read; a RoBERTa behind it.
    assert tokens == {0: [every, every], 1: [every, 1] if tower == "image" else [1, 1]}


def test_a_wrong_weight_is_found(written: tuple[Artefact, Encode], tmp_path: Path) -> None:
    """The proof looks at what was written."""
    artefact, _ = written
    model = onnx.load(artefact.path)
    *_, weight = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    value = np.array(onnx.numpy_helper.to_array(weight))
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(value, 1, axis=0), weight.name))
    other = Artefact(artefact.arch, artefact.tower, "fp32", tmp_path)
    onnx.save_model(model, other.path)
    with pytest.raises(ParityError, match=r"onnx at batch"):
        check_artefact(other, np.load(artefact.reference))
