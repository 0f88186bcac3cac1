"""What all tests share: tiny models made here, and the real images and captions if they are at hand."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch, get_arch

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

TINY_VIT: dict[str, Any] = {
    "embed_dim": 48,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 32,
    # BERT's own 0.02 would leave so narrow a model features that differ by no more than FP16's rounding.
    "text_initializer_range": 0.1,
    "text_intermediate_size": 64,
    "text_max_position_embeddings": 80,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}
TINY_RESNET: dict[str, Any] = {
    **TINY_VIT,
    "image_resolution": 64,
    "vision_layers": [1, 1, 1, 1],
    "vision_width": 8,
    "vision_patch_size": None,
}


@pytest.fixture(scope="session")
def shared_images() -> list[Path]:
    """Real images, ordinary and hostile; the test is skipped where they are not at hand."""
    folder = SHARED_DATA / "images"
    images = sorted(path for path in folder.glob("*.*") if path.suffix not in {".csv", ".md"})
    if not images:
        pytest.skip(f"no real images beside the checkout ({folder.name}/ of shared/data)")
    return images


@pytest.fixture(scope="session")
def shared_captions() -> list[str]:
    """Real Chinese captions; the test is skipped where they are not at hand."""
    path = SHARED_DATA / "captions" / "captions.jsonl"
    if not path.exists():
        pytest.skip("no real captions beside the checkout (captions/ of shared/data)")
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Arch:
    """A ViT of Chinese-CLIP's kind, small enough to build in seconds."""
    return _write_arch(tmp_path_factory.mktemp("arch"), "tiny-vit", TINY_VIT)


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Arch:
    """A ResNet of Chinese-CLIP's kind, small enough to build in seconds."""
    return _write_arch(tmp_path_factory.mktemp("arch"), "tiny-rn", TINY_RESNET)


@pytest.fixture(scope="session")
def resnet_checkpoint(tiny_resnet: Arch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny ResNet whose residual branches count; fresh ones are zero at first."""
    import torch
    from cn_clip.clip.model import CLIP

    torch.manual_seed(8)
    weights = CLIP(**tiny_resnet.model_info).state_dict()
    for name, value in weights.items():
        if "bn3.weight" in name or "running_var" in name:
            value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet.pt"
    torch.save({"state_dict": weights}, path)
    return path


@pytest.fixture
def builder_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The builder's log records from INFO on."""
    with caplog.at_level(logging.INFO, logger="cnclip_builder"):
        yield caplog


def _write_arch(folder: Path, name: str, info: dict[str, Any]) -> Arch:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(info), encoding="utf-8")
    return get_arch(str(path))
