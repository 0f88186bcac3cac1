"""What lies beside a transformers' model for preparing its inputs: other tokens, other pixels, told or refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cn_clip.clip import image_transform
from cnclip_builder.arch import Arch, cn_clip_vocabulary, get_arch
from cnclip_builder.checkpoint.choose import choose_arch
from cnclip_builder.checkpoint.processors import _NORMALISED, other_preparation
from cnclip_builder.checkpoint.stage import find_arch_of, open_checkpoint, with_own_vocabulary
from cnclip_builder.errors import CheckpointError, SettingError
from cnclip_builder.vocabulary import read_tokens

from tests.builder.checkpoint.chinese_clip import TINY, make_model

SQUARE = {"height": 32, "width": 32}
AS_CN_CLIP = {"do_center_crop": False, "size": SQUARE}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "fine-tuned"
    make_model(TINY).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "fine-tuned"))


def exchanged(tmp_path: Path) -> Path:
    """cn_clip's vocabulary with two tokens exchanged: as many rows, other ids."""
    tokens = read_tokens(cn_clip_vocabulary())
    tokens[700], tokens[701] = tokens[701], tokens[700]
    (path := tmp_path / "other.txt").write_text("\n".join(tokens), encoding="utf-8")
    return path


def save_processors(folder: Path, vocabulary: Path, images: dict[str, Any], **texts: Any) -> None:
    """As transformers 5 saves them: tokens in tokenizer.json alone, pixels in processor_config.json."""
    from transformers import BertTokenizer, ChineseCLIPImageProcessor, ChineseCLIPProcessor

    tokenizer = BertTokenizer(vocab=str(vocabulary), **texts)
    ChineseCLIPProcessor(ChineseCLIPImageProcessor(**images), tokenizer).save_pretrained(folder)
    assert not (folder / "vocab.txt").exists()


def test_the_mean_is_cn_clips() -> None:
    normalize = image_transform(32).transforms[-1]
    assert {"image_mean": tuple(normalize.mean), "image_std": tuple(normalize.std)} == _NORMALISED


def test_what_prepares_as_cn_clip_does_is_no_matter(
    folder: Path, tmp_path: Path, builder_log: pytest.LogCaptureFixture
) -> None:
    save_processors(folder, cn_clip_vocabulary(), AS_CN_CLIP)
    arch = find_arch_of(str(folder), {}, None)
    assert arch.vocabulary is None
    open_checkpoint(str(folder), arch, tmp_path, "huggingface")
    assert "other inputs" not in builder_log.text


def test_tokens_that_are_in_a_tokenizer_json_alone(folder: Path, tmp_path: Path) -> None:
    """The command in the message makes the file that is read."""
    other = exchanged(tmp_path)
    save_processors(folder, other, AS_CN_CLIP)
    with pytest.raises(
        SettingError, match=r"tokenizer\.json has other tokens than cn_clip's, .*write it there, cd "
    ) as told:
        choose_arch(None, str(folder))
    assert choose_arch(None, str(folder), other).vocabulary == other
    command = str(told.value).partition("write it there, ")[2].replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], check=True)
    assert choose_arch(None, str(folder)).vocabulary == folder / "vocab.txt"
    assert read_tokens(folder / "vocab.txt") == read_tokens(other)


def test_a_vocabulary_counts_for_whatever_names_the_model(folder: Path, tmp_path: Path) -> None:
    """The file in the folder, and an adapter that lies elsewhere."""
    shutil.copy(exchanged(tmp_path), folder / "vocab.txt")
    assert choose_arch(None, str(folder / "model.safetensors")).vocabulary == folder / "vocab.txt"
    (adapter := tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "lora_alpha": 8, "r": 4, "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", adapter / "adapter_model.safetensors")
    assert with_own_vocabulary(get_arch("RN50"), adapter).vocabulary == folder / "vocab.txt"


@pytest.mark.parametrize(
    ("images", "texts", "told"),
    [
        ({}, {}, r"size is \{'shortest_edge': 224\}, and not \{'height': 32, .*crop_size is \{'height': 224"),
        ({**AS_CN_CLIP, "image_mean": [0.5, 0.5, 0.5]}, {}, r"image_mean is \[0\.5, 0\.5, 0\.5\], and not \[0\.481"),
        ({**AS_CN_CLIP, "resample": 2}, {}, "resample is 2, and not 3"),
        ({**AS_CN_CLIP, "do_normalize": False}, {}, "do_normalize is False, and not True"),
        ({"size": SQUARE, "crop_size": {"height": 28, "width": 28}}, {}, "crop_size is {'height': 28, 'width': 28}"),
        (AS_CN_CLIP, {"do_lower_case": False}, "do_lower_case is False"),
        (AS_CN_CLIP, {"tokenize_chinese_chars": False}, "tokenize_chinese_chars is False"),
        (AS_CN_CLIP, {"strip_accents": False}, "strip_accents is False"),
    ],
)
def test_other_inputs_are_told(
    folder: Path,
    tmp_path: Path,
    builder_log: pytest.LogCaptureFixture,
    images: dict[str, Any],
    texts: dict[str, Any],
    told: str,
) -> None:
    save_processors(folder, cn_clip_vocabulary(), images, **texts)
    open_checkpoint(str(folder), find_arch_of(str(folder), {}, None), tmp_path, "huggingface")
    (line,) = [record.message for record in builder_log.records if "other inputs than cn_clip" in record.message]
    assert re.search(told, line)


def test_added_tokens_are_told(folder: Path, tiny_vit: Arch) -> None:
    save_processors(folder, cn_clip_vocabulary(), AS_CN_CLIP)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append({"id": 21128, "content": "<shop>", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "it has tokens of its own, such as '<shop>'" in other_preparation(folder, tiny_vit)


def test_as_transformers_4_saved_it(folder: Path, tiny_vit: Arch) -> None:
    """In preprocessor_config.json; sizes of an old one are numbers, and of the shorter side."""
    (file := folder / "preprocessor_config.json").write_text(json.dumps({**AS_CN_CLIP, "resample": 3}))
    assert other_preparation(folder, tiny_vit) == ""
    file.write_text(json.dumps({"do_center_crop": False, "size": 32}))
    assert "size is 32, and not" in other_preparation(folder, tiny_vit)
    file.write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is no JSON"):
        other_preparation(folder, tiny_vit)
