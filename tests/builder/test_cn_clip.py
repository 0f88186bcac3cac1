"""cn_clip without torch's compiler: stages have it so, and whoever needs the compiler gets it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cnclip_builder import cn_clip
from cnclip_builder.arch import ARCH_NAMES, get_arch
from cnclip_builder.checkpoint.load import expected_shapes
from cnclip_builder.checkpoint.names import in_cn_clips_form
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.system.isolation import stage_process

COMPILER = "torch._dynamo.utils"


def _imported() -> list[str]:
    return [
        name for name in ("cn_clip.clip.model", "torchvision.ops", "torch._dynamo", COMPILER) if name in sys.modules
    ]


def test_a_stage_has_cn_clip_and_no_compiler() -> None:
    """Nor does it import that for a model without storage, of which each checkpoint's shapes are read."""
    with stage_process() as process:
        for name in ARCH_NAMES:
            assert process.run(expected_shapes, get_arch(name))
        assert process.run(_imported) == ["cn_clip.clip.model", "torchvision.ops"]


def test_it_is_there_for_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    later = cn_clip._Later(COMPILER)
    compiler = SimpleNamespace(is_compile_supported="of {}".format, other=7)
    monkeypatch.setattr(cn_clip, "import_module", {COMPILER: compiler}.__getitem__)
    monkeypatch.setitem(sys.modules, COMPILER, later)
    assert later.is_compile_supported("cuda") == "of cuda"
    assert not hasattr(later, "__path__")
    assert sys.modules[COMPILER] is later
    assert later.other == 7
    assert COMPILER not in sys.modules
    monkeypatch.setitem(sys.modules, COMPILER, compiler)
    assert later.other == 7
    assert sys.modules[COMPILER] is compiler  # not made twice for who got this one, in a thread at the same time


def test_cn_clip_1_5_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for FlashAttention's names, from which only later ones know a way back."""
    monkeypatch.delattr("cn_clip.clip.model.convert_state_dict")
    assert runpy.run_path(cn_clip.__file__)["CLIP"] is cn_clip.CLIP
    with pytest.raises(MissingRequirementError, match=r"x.pt has FlashAttention's names.*cn_clip>=1\.6"):
        in_cn_clips_form(Path("x.pt"), {"visual.attn.Wqkv.weight": torch.zeros(1)})
