"""Architectures are read off tensors: official ones, and sizes that nobody has listed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cnclip_builder.arch import ARCH_NAMES, Arch, can_name_arch, get_arch
from cnclip_builder.checkpoint.choose import choose_arch
from cnclip_builder.checkpoint.load import find_arch, load_checkpoint, make_meta_model
from cnclip_builder.errors import BuildError, CheckpointError, SettingError, UnknownArchError

from tests.builder.damaged import require_one_line_about
from tests.conftest import TINY_RESNET, TINY_VIT

HEADS = {"text_num_attention_heads": 2, "vision_head_width": 64}


def save(path: Path, info: dict[str, Any]) -> Path:
    """A checkpoint with a model's shapes that takes no room, as cn_clip writes it."""
    shapes = make_meta_model(Arch("made", info)).state_dict()
    state_dict = {
        f"module.{name}": torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()
    }
    torch.save({"epoch": 1, "state_dict": state_dict}, path)
    return path


def like(name: str, **changes: Any) -> dict[str, Any]:
    return {**get_arch(name).model_info, **changes}


@pytest.mark.parametrize("name", ARCH_NAMES)
def test_official_ones(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "epoch_latest.pt", like(name))
    arch = find_arch(path, {}, ["epoch_latest"])
    assert arch == get_arch(name)
    load_checkpoint(path, arch)


@pytest.mark.parametrize(
    ("info", "heads"),
    [
        (like("ViT-B-16", text_num_hidden_layers=3), (12, 64)),  # RBT3
        (like("RN50", text_num_hidden_layers=12), (12, 64)),  # RoBERTa-wwm-ext
        (like("ViT-L-14", vision_layers=2, **{key: value for key, value in like("ViT-H-14").items() if key.startswith("text")}), (16, 64)),
        (like("ViT-H-14", vision_layers=2, **{key: value for key, value in like("RN50").items() if key.startswith("text")}), (12, 80)),
        (like("ViT-B-16", vision_patch_size=32), (12, 64)),
        (like("ViT-B-16", image_resolution=384, text_max_position_embeddings=77), (12, 64)),
        (like("ViT-L-14", embed_dim=123, vision_layers=7, text_intermediate_size=1000), (12, 64)),
        (like("RN50", vision_layers=[2, 1, 3, 1], image_resolution=288), (12, 64)),
        (like("ViT-B-16", vocab_size=21200, text_type_vocab_size=3), (12, 64)),
    ],
)  # fmt: skip
def test_other_sizes_with_heads_that_cn_clip_has(tmp_path: Path, info: dict[str, Any], heads: tuple[int, int]) -> None:
    """They are named after the file, and every argument is the one that the model was made with."""
    path = save(tmp_path / "my-CLIP.v2.pt", info)
    arch = choose_arch(None, str(path))
    assert (arch.name, arch.slug, arch.hub, arch.file) == ("my-CLIP.v2", "my-clip.v2", None, None)
    assert arch.computes_as(info)
    assert (arch.model_info["text_num_attention_heads"], arch.vision_head_width) == heads
    assert arch.options == []
    load_checkpoint(path, arch)


def test_what_was_looked_up_is_said(tmp_path: Path, builder_log: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "own.pt", like("ViT-B-16", text_num_hidden_layers=3))
    find_arch(path, {}, ["own"])
    assert (
        "an architecture of its own, named own: ViT of 12 blocks, patches of 16, width 768 in heads of 64, 224 pixels; "
        in (builder_log.text)
    )
    assert "text of 3 layers, width 768 in 12 heads" in builder_log.text
    assert "heads as in cn_clip's models of these widths, since tensors don't tell them" in builder_log.text
    builder_log.clear()
    find_arch(save(tmp_path / "l.pt", like("ViT-L-14")), {}, ["l"])
    assert builder_log.record_tuples == [
        ("cnclip_builder.checkpoint.detect", logging.INFO, f"{tmp_path / 'l.pt'} is of ViT-L-14")
    ]


def test_unknown_heads_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "odd.pt", TINY_VIT)
    with pytest.raises(CheckpointError) as caught:
        choose_arch(None, str(path))
    require_one_line_about(path, str(caught.value))
    assert 'a file heads.json with {"text_num_attention_heads": ..., "vision_head_width": ...}' in str(caught.value)
    assert str(caught.value).endswith("give it as ARCH=heads.json (--arch); the rest is read off the tensors")
    heads = tmp_path / "heads.json"
    for given in ({"text_num_attention_heads": 2}, {"vision_head_width": 64}, {}):
        heads.write_text(json.dumps(given))
        (missing,) = set(HEADS) - set(given) if given else ({"text_num_attention_heads"})
        with pytest.raises(CheckpointError, match=missing):
            choose_arch(str(heads), str(path))
    heads.write_text(json.dumps(HEADS))
    arch = choose_arch(str(heads), str(path))
    assert arch.name == "odd"
    assert arch.computes_as(TINY_VIT)


def test_only_what_is_unknown_is_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "odd.pt", like("ViT-B-16", text_hidden_size=312, text_num_hidden_layers=4))
    with pytest.raises(CheckpointError, match=r"does not tell its text_num_attention_heads, since .*width of 312"):
        find_arch(path, {}, ["odd"])
    path = save(tmp_path / "narrow.pt", {**TINY_RESNET, "text_hidden_size": 768, "text_num_attention_heads": 12})
    with pytest.raises(CheckpointError, match=r"does not tell its vision_head_width, since"):
        find_arch(path, {}, ["narrow"])
    assert find_arch(path, {"vision_head_width": 64}, ["narrow"]).computes_as(
        {**TINY_RESNET, "text_hidden_size": 768, "text_num_attention_heads": 12}
    )


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"image_resolution": 224}, "has image_resolution 32 by its tensors, and the file of ARCH says 224"),
        ({"embed_dim": 512}, "has embed_dim 48 by its tensors"),
        ({"vision_layers": [1, 1, 1, 1]}, "has vision_layers 2 by its tensors"),
        ({"text_num_attention_heads": 5}, "describes no model that cn_clip can make"),
        ({"vision_head_width": 3}, "describes no model that cn_clip can make"),
        ({"text_hidden_act": "gelo"}, "describes no model that cn_clip can make"),
    ],
)
def test_what_is_said_wrongly(tmp_path: Path, said: dict[str, Any], complaint: str) -> None:
    path = save(tmp_path / "odd.pt", TINY_VIT)
    (tmp_path / "said.json").write_text(json.dumps({**HEADS, **said}))
    with pytest.raises(BuildError, match=complaint):
        choose_arch(str(tmp_path / "said.json"), str(path))


def test_a_description_that_lacks_sizes_is_one_of_a_checkpoint_alone(tmp_path: Path) -> None:
    (tmp_path / "said.json").write_text(json.dumps(HEADS))
    for source in (None, "random:0"):
        with pytest.raises(UnknownArchError, match=r"it lacks embed_dim, .*name a CHECKPOINT whose tensors tell them"):
            choose_arch(str(tmp_path / "said.json"), source)
    for content in ('{"colour": 1}', "[", '{"vision_head_width": "64"}'):
        (tmp_path / "said.json").write_text(content)
        with pytest.raises(UnknownArchError, match="does not describe an architecture"):
            choose_arch(str(tmp_path / "said.json"), str(save(tmp_path / "odd.pt", TINY_VIT)))


def test_names(tmp_path: Path) -> None:
    info = like("ViT-B-16", text_num_hidden_layers=3)
    path = save(tmp_path / "我的模型.pt", info)
    with pytest.raises(
        SettingError, match=r"is of an architecture of its own, and '我的模型' can't name it: choose a NAME"
    ):
        choose_arch(None, str(path))
    assert choose_arch(None, str(path), name="Prod").name == "Prod"
    own = save(tmp_path / "own.pt", info)
    assert choose_arch(None, str(own), name="rn50").name == "own"  # served as rn50, but no RN50
    official = save(tmp_path / "我的.pt", like("RN50"))
    assert choose_arch(None, str(official), name="Prod") == get_arch("RN50")


@pytest.mark.parametrize("name", ["vit-b-16", "RN50", "with space", ".hidden", ""])
def test_names_that_an_arch_can_not_have(name: str) -> None:
    assert not can_name_arch(name)


def test_without_a_checkpoint_it_is_vit_b_16() -> None:
    assert choose_arch(None, None) == choose_arch(None, "random:7") == get_arch("ViT-B-16")


def test_an_arch_that_is_named_is_insisted_on(tmp_path: Path) -> None:
    path = save(tmp_path / "l.pt", like("ViT-L-14"))
    arch = choose_arch("RN50", str(path))
    with pytest.raises(CheckpointError, match="is a ViT-L-14 checkpoint, not RN50: use ARCH=ViT-L-14"):
        load_checkpoint(path, arch)


def test_vocabularies(tmp_path: Path) -> None:
    path = save(tmp_path / "wide.pt", like("ViT-B-16", vocab_size=21129))
    tokens = get_arch("ViT-B-16").vocabulary_file.read_text(encoding="utf-8").rstrip("\n")
    (own := tmp_path / "own.txt").write_text(f"{tokens}\n[NEW]\n", encoding="utf-8")
    assert choose_arch(None, str(path), own).vocabulary == own
    (tmp_path / "short.txt").write_text("\n".join(tokens.split("\n")[:20000]), encoding="utf-8")
    with pytest.raises(SettingError, match="wide embeds 21129 tokens, and .*short.txt has 20000"):
        choose_arch(None, str(path), tmp_path / "short.txt")


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("visual.positional_embedding", (198, 768), "198 positions, not those of a square and one more"),
        ("visual.positional_embedding", (1, 768), "1 positions"),
        ("visual.conv1.weight", (768, 768), "shapes of another number of axes"),
        ("visual.proj", (768,), "shapes of another number of axes"),
        ("bert.embeddings.word_embeddings.weight", (21128,), "shapes of another number of axes"),
        ("bert.embeddings.position_embeddings.weight", None, "bert.embeddings.position_embeddings.weight is missing"),
        (
            "visual.transformer.resblocks.1.ln_1.weight",
            None,
            "sizes: 1 tensor missing, such as visual.*blocks.1.ln_1.weight; save the whole model again",
        ),
        ("kd_head.weight", (8, 512), r"1 tensor unknown, such as kd_head.weight; if features don't .* leave them"),
        ("visual.conv1.lora_A", (4, 768), r"such as visual.conv1.lora_A; merge them .*merge_and_unload"),
        ("bert.encoder.layer.11.output.dense.weight", (768, 3071), "other shapes, such as bert.encoder.layer.11"),
        ("visual.transformer.resblocks.40.ln_1.weight", (768,), r"resblocks\.12 is missing"),
    ],
)
def test_tensors_of_no_model(tmp_path: Path, name: str, shape: tuple[int, ...] | None, complaint: str) -> None:
    tensors = torch.load(save(tmp_path / "odd.pt", like("ViT-B-16")), weights_only=True)["state_dict"]
    tensors.pop(f"module.{name}", None)
    if shape is not None:
        tensors[f"module.{name}"] = torch.zeros(()).expand(shape)
    torch.save({"state_dict": tensors}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=complaint) as caught:
        find_arch(tmp_path / "odd.pt", {}, ["odd"])
    require_one_line_about(tmp_path / "odd.pt", str(caught.value))


@pytest.mark.parametrize(
    ("kept", "lacks"), [("visual.", "a text encoder (bert.*)"), ("", "an image encoder (visual.*)")]
)
def test_half_a_model(tmp_path: Path, kept: str, lacks: str) -> None:
    whole = torch.load(save(tmp_path / "half.pt", like("ViT-B-16")), weights_only=True)["state_dict"]
    half = {k: v for k, v in whole.items() if k.startswith("module.visual.") == bool(kept)}
    torch.save({"state_dict": half}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match=re.escape(f"it has no tensors of {lacks}")):
        find_arch(tmp_path / "half.pt", {}, ["half"])
