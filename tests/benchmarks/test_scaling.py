"""docs/scaling.md: its tables are the script's, and the script's counts are right."""

from __future__ import annotations

import pytest
from cnclip_builder.arch import get_arch

from tests.benchmarks.loading import load
from tests.conftest import ROOT

scaling = load("scaling")


@pytest.mark.parametrize("title", scaling.tables())
def test_the_page_shows_the_scripts_tables(title: str) -> None:
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    assert scaling.tables()[title] in page


@pytest.mark.parametrize("name", scaling.ARCHS)
def test_flops_agree_with_what_pytorch_counts(name: str) -> None:
    import torch
    from cn_clip.clip.model import VisualTransformer
    from torch.utils.flop_counter import FlopCounterMode

    arch = get_arch(name)
    info = arch.model_info
    width, layers, patch = info["vision_width"], info["vision_layers"], info["vision_patch_size"]
    heads = width // info.get("vision_head_width", 64)
    with torch.device("meta"):  # shapes alone
        model = VisualTransformer(arch.resolution, patch, width, layers, heads, arch.embedding_size).eval()
        image = torch.empty(1, 3, arch.resolution, arch.resolution)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    assert scaling.image_flops(arch) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_what_runs_out_first() -> None:
    arch, small, large = get_arch("ViT-B-16"), *scaling.SOURCES
    h100 = scaling.GPUS[0]
    assert scaling.first_limit(h100, arch, large) == ("cores", pytest.approx(16 / 8e-3))
    slow = scaling.Gpu("slow", 1e12, 1.0)
    assert scaling.first_limit(slow, arch, small) == ("GPU", scaling.gpu_rate(slow, arch))
    heavy = scaling.Source("heavy", 1e-6, 1e9)
    assert scaling.first_limit(h100, arch, heavy) == ("network", 25 / 8)
