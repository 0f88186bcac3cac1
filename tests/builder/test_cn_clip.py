"""cn_clip without torch's compiler: stages have it so, and whoever needs the compiler gets it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from cnclip_builder import cn_clip
from cnclip_builder.arch import ARCH_NAMES, get_arch
from cnclip_builder.checkpoint.load import expected_shapes
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
