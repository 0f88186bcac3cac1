"""Encoders for ONNX Runtime on a GPU: few nodes, and PyTorch's features, on the CPU provider as on any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.sources import fetch_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import ParityError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.check import check_served_encoder, open_session
from cnclip_builder.export.fused import write_fused_encoder
from cnclip_builder.export.graphs import has_fused_form
from cnclip_builder.parity.distance import TOLERANCES, check_parity
from cnclip_builder.parity.probes import make_probes, normalise
from cnclip_builder.tensors import PRECISIONS, TENSORS, TOWERS, Precision, Tower

from tests.conftest import TINY_VIT

RNG = np.random.default_rng(7)
Encode = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]

# All of ONNX Runtime's operators in a layer, and what is outside of the layers.
NODES_A_LAYER: dict[Tower, int] = {"image": 12, "text": 7}
NODES_AROUND: dict[Tower, int] = {"image": 15, "text": 24}

# The operators' versions that the CUDA provider has kernels for, in ONNX Runtime 1.17 (its cuda_execution_provider.cc,
# after PR 18053) and since: a node of a newer version goes to the CPU without a word, unless a kernel of that is there.
CUDA_KERNELS = {
    **{"Add": 14, "Cast": 13, "Concat": 13, "Div": 14, "Gather": 13, "LayerNormalization": 17, "MatMul": 13, "Max": 13},
    **{"Mul": 14, "Pad": 13, "Range": 11, "ReduceL2": 13, "ReduceSum": 13, "Reshape": 14, "Shape": 15, "Slice": 13},
    "Transpose": 13,
}


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def served(
    tiny_artefacts: Artefacts, precision: Precision, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Tower, Path]:
    """The fused file of each tiny encoder."""
    folder, checkpoint = tmp_path_factory.mktemp(precision), tiny_artefacts.checkpoint.file.path
    for tower in TOWERS:
        (folder / tower).mkdir()
    return {
        tower: write_fused_encoder(checkpoint, tiny_artefacts.get(tower, precision), folder / tower) for tower in TOWERS
    }


@pytest.fixture(scope="module")
def pytorch(tiny_artefacts: Artefacts, tiny_vit: Arch) -> Mapping[Tower, Encode]:
    """cn_clip's own encoders, of uint8 pixels and int32 ids."""
    checkpoint = load_checkpoint(tiny_artefacts.checkpoint.file.path, tiny_vit)
    image, text = (load_tower(checkpoint, tower) for tower in TOWERS)
    return {
        "image": lambda pixels: encode(image, normalise(pixels)),
        "text": lambda ids: encode(text, ids.astype(np.int64)),
    }


def features(path: Path, tower: Tower) -> Encode:
    session, names = open_session(path), TENSORS[tower]

    def run(inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = session.run([names.unnormalised], {names.served_input: inputs})[0]
        return result

    return run


def texts(*lengths: int, padded_to: int) -> npt.NDArray[np.int32]:
    ids = np.zeros((len(lengths), padded_to), dtype=np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = RNG.integers(100, 8000, length)
    return ids


@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_pytorchs(
    served: Mapping[Tower, Path], tiny_artefacts: Artefacts, precision: Precision, tower: Tower
) -> None:
    parity = check_served_encoder(served[tower], tiny_artefacts.get(tower, precision))
    assert parity.rows == len(make_probes(tiny_artefacts.get(tower, precision).arch).served_inputs(tower))
    onnx.checker.check_model(str(served[tower]))


@pytest.mark.parametrize(
    "ids",
    [
        texts(3, 52, 17, 31, padded_to=52),
        texts(3, 9, padded_to=24),
        texts(24, 24, padded_to=24),
        texts(52, padded_to=52),
        texts(1, 1, padded_to=1),
        texts(1, 5, padded_to=52),
        texts(80, 3, padded_to=80),  # all position embeddings
        texts(*range(1, 51), padded_to=50),
    ],
    ids=lambda ids: f"{len(ids)} of {ids.shape[1]}",
)
def test_texts_of_any_length_and_padding(
    served: Mapping[Tower, Path], pytorch: Mapping[Tower, Encode], precision: Precision, ids: npt.NDArray[np.int32]
) -> None:
    check_parity("texts", features(served["text"], "text")(ids), pytorch["text"](ids), TOLERANCES[precision])


@pytest.mark.parametrize("tower", TOWERS)
def test_every_node_has_a_kernel_on_a_gpu(served: Mapping[Tower, Path], tower: Tower) -> None:
    model = onnx.load(served[tower], load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    own = {node.op_type for node in model.graph.node if not node.domain}
    begun = {kind: onnx.defs.get_schema(kind, opset).since_version for kind in own}
    assert begun == {kind: CUDA_KERNELS.get(kind) for kind in own}


@pytest.mark.parametrize("rows", [1, 2, 7, 65])
def test_any_batch_of_images(
    served: Mapping[Tower, Path], pytorch: Mapping[Tower, Encode], precision: Precision, rows: int
) -> None:
    pixels = RNG.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    check_parity("images", features(served["image"], "image")(pixels), pytorch["image"](pixels), TOLERANCES[precision])


def test_neither_the_batch_nor_the_padding_changes_a_text(served: Mapping[Tower, Path]) -> None:
    text = features(served["text"], "text")
    ids = texts(7, 52, 30, padded_to=52)
    together = text(ids)
    for row, length in ((0, 8), (0, 24), (2, 30), (2, 40)):
        np.testing.assert_allclose(text(ids[row : row + 1, :length])[0], together[row], rtol=2e-3, atol=2e-3)


def test_nothing_but_padding_is_no_error(served: Mapping[Tower, Path]) -> None:
    ids = texts(9, 9, padded_to=16)
    ids[0] = 0
    text = features(served["text"], "text")
    assert np.isfinite(text(ids)).all()
    np.testing.assert_allclose(text(ids)[1:], text(ids[1:]), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("tower", TOWERS)
def test_few_nodes(served: Mapping[Tower, Path], tower: Tower) -> None:
    require_few_nodes(served[tower], tower, layers=2)


@pytest.mark.parametrize("tower", TOWERS)
def test_weights_lie_beside_it_where_they_can_be_mapped(
    served: Mapping[Tower, Path], precision: Precision, tower: Tower
) -> None:
    model = onnx.load(served[tower], load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    assert {entry["location"] for entry in entries} == {"model.onnx.extra_file"}
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)
    assert all(len(tensor.raw_data) < 1024 for tensor in model.graph.initializer)
    floats = {onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT}
    assert {tensor.data_type for tensor in outside} == floats


def test_a_wrong_weight_is_found(
    served: Mapping[Tower, Path], tiny_artefacts: Artefacts, precision: Precision, tmp_path: Path
) -> None:
    """The proof looks at what is served: a file whose weights are another's does not pass."""
    for file in served["text"].parent.iterdir():
        data = bytearray(file.read_bytes())
        if file.name.endswith(".extra_file"):
            half = len(data) // 2
            data[half:] = bytes(len(data) - half)
        (tmp_path / file.name).write_bytes(data)
    with pytest.raises(ParityError, match=r"model\.onnx"):
        check_served_encoder(tmp_path / "model.onnx", tiny_artefacts.get("text", precision))


@pytest.mark.parametrize(
    ("changes", "image", "text"),
    [
        ({}, True, True),
        ({"text_hidden_act": "gelu_new"}, True, False),
        ({"vision_layers": [1, 1, 1, 1], "vision_patch_size": None}, False, True),
        ({"image_resolution": 36}, False, True),  # a patch's rest is cut off
    ],
)
def test_which_have_a_fused_form(tmp_path: Path, changes: dict[str, Any], image: bool, text: bool) -> None:
    file = tmp_path / "arch.json"
    file.write_text(json.dumps({**TINY_VIT, **changes}), encoding="utf-8")
    arch = get_arch(str(file))
    assert (has_fused_form(arch, "image"), has_fused_form(arch, "text")) == (image, text)


def test_a_patch_that_is_no_multiple_of_eight(tmp_path: Path) -> None:
    """14 x 14 x 3 = 588 samples, as ViT-L-14 and ViT-H-14 have: padded to 592."""
    file = tmp_path / "arch.json"
    file.write_text(json.dumps({**TINY_VIT, "image_resolution": 42, "vision_patch_size": 14}), encoding="utf-8")
    arch = get_arch(str(file))
    artefacts = build_artefacts(
        arch, "random:1", tmp_path / "a", towers=("image",), precisions=PRECISIONS, download_root=tmp_path
    )
    for precision in PRECISIONS:
        (tmp_path / precision).mkdir()
        artefact = artefacts.get("image", precision)
        path = write_fused_encoder(artefacts.checkpoint.file.path, artefact, tmp_path / precision)
        check_served_encoder(path, artefact)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"])
def test_official_sizes(name: str, tmp_path: Path) -> None:
    arch = get_arch(name)
    checkpoint = fetch_checkpoint("random:0", arch, tmp_path, "huggingface").path
    info = arch.model_info
    layers: dict[Tower, int] = {"image": info["vision_layers"], "text": info["text_num_hidden_layers"]}
    for tower in TOWERS:
        if not has_fused_form(arch, tower):
            assert (name, tower) == ("RN50", "image")
            continue
        fp32 = Artefact(arch, tower, "fp32", tmp_path)
        module = load_tower(load_checkpoint(checkpoint, arch), tower)
        np.save(fp32.reference, encode(module, make_probes(arch).inputs(tower)))
        del module
        for precision in PRECISIONS:
            path = write_fused_encoder(checkpoint, replace(fp32, precision=precision), tmp_path)
            nodes = require_few_nodes(path, tower, layers[tower])
            assert nodes <= 170 or (name, tower) != ("ViT-B-16", "image")
            check_served_encoder(path, replace(fp32, precision=precision))


def require_few_nodes(path: Path, tower: Tower, layers: int) -> int:
    nodes = onnx.load(path, load_external_data=False).graph.node
    assert len(nodes) == NODES_A_LAYER[tower] * layers + NODES_AROUND[tower]
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["MultiHeadAttention" if tower == "image" else "Attention"] == layers
    assert kinds["SkipLayerNormalization"] == 2 * layers + (tower == "image")
    assert kinds["QuickGelu" if tower == "image" else "BiasGelu"] == layers
    # No convolution, and no shapes at run time but for the texts' one mask.
    assert not {"Conv", "Softmax", "Erf", "Sigmoid", "Unsqueeze", "Expand", "Where"} & set(kinds)
    shapes = {kind: kinds[kind] for kind in ("Shape", "Gather", "Concat")}
    assert shapes == (dict.fromkeys(shapes, 0) if tower == "image" else {"Shape": 2, "Gather": 3, "Concat": 1})
    return len(nodes)
