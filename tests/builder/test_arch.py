"""The registry of architectures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cnclip_builder.arch import ARCH_NAMES, get_arch, official_archs
from cnclip_builder.checkpoint.load import expected_shapes
from cnclip_builder.errors import SettingError, UnknownArchError

from tests.conftest import TINY_VIT

# name: slug, resolution, embedding size, parameters in millions (Chinese-CLIP's model card)
CARD = {
    "RN50": ("rn50", 224, 1024, 77),
    "ViT-B-16": ("vit-b-16", 224, 512, 188),
    "ViT-L-14": ("vit-l-14", 224, 768, 406),
    "ViT-L-14-336": ("vit-l-14-336", 336, 768, 407),
    "ViT-H-14": ("vit-h-14", 224, 1024, 958),
}


def test_every_arch_is_on_the_card() -> None:
    assert set(ARCH_NAMES) == set(CARD)


@pytest.mark.parametrize("name", ARCH_NAMES)
def test_official_arch(name: str) -> None:
    arch = get_arch(name)
    slug, resolution, embedding_size, millions = CARD[name]
    assert (arch.slug, arch.resolution, arch.embedding_size) == (slug, resolution, embedding_size)
    assert arch.max_context_length == 512
    assert arch.hub is not None
    assert arch.hub.filename == f"clip_cn_{slug}.pt"
    parameters = 0
    for tensor, shape in expected_shapes(arch).items():
        size = 1
        for axis in shape:
            size *= axis
        parameters += 0 if "running_" in tensor or "num_batches" in tensor else size
    assert round(parameters / 1e6) == pytest.approx(millions, abs=1)


def test_hub_files_are_cn_clips() -> None:
    from cn_clip.clip.utils import _MODEL_INFO, _MODELS

    assert {arch.name: (arch.hub.repository, arch.hub.filename) for arch in official_archs() if arch.hub} == _MODELS
    assert {arch.name: arch.resolution for arch in official_archs()} == {
        name: info["input_resolution"] for name, info in _MODEL_INFO.items()
    }


def test_name_in_any_case() -> None:
    assert get_arch("vit-b-16") == get_arch("ViT-B-16")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownArchError, match=r"'ViT-X'.*RN50, ViT-B-16, ViT-L-14, ViT-L-14-336, ViT-H-14"):
        get_arch("ViT-X")


@pytest.mark.parametrize("length", [0, 2, 513, -1])
def test_context_length_out_of_range(length: int) -> None:
    with pytest.raises(SettingError, match=rf"{length} is out of range for RN50.*512 position embeddings"):
        get_arch("RN50").checked_context_length(length)


@pytest.mark.parametrize("length", [3, 52, 512])
def test_context_length_in_range(length: int) -> None:
    assert get_arch("RN50").checked_context_length(length) == length


def test_custom_arch_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "My-CLIP.json"
    path.write_text(json.dumps(TINY_VIT), encoding="utf-8-sig")  # as an editor of Windows writes it
    arch = get_arch(str(path))
    assert (arch.name, arch.slug, arch.resolution, arch.hub) == ("My-CLIP", "my-clip", 32, None)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", "{", "does not describe an architecture"),
        ("a.json", "[]", "does not describe an architecture"),
        ("a.json", json.dumps({"vision_layers": 1}), "it lacks embed_dim"),
        ("a.json", json.dumps({**TINY_VIT, "colour": 1}), "CLIP takes no colour"),
        ("no name.json", json.dumps(TINY_VIT), "letters, digits"),
        ("rn50.json", json.dumps(TINY_VIT), "official architecture's name"),
    ],
)
def test_custom_arch_refused(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UnknownArchError, match=complaint):
        get_arch(str(path))


def test_custom_arch_missing(tmp_path: Path) -> None:
    with pytest.raises(UnknownArchError, match="no such file"):
        get_arch(str(tmp_path / "absent.json"))
