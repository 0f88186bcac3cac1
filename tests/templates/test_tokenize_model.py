"""The tokeniser's model, loaded as Triton loads it: the lengths that its config names."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cnclip_token_ids
import pytest
from cnclip_builder.arch import cn_clip_vocabulary
from cnclip_templates import templates_folder


class Refusal:
    INVALID_ARG = "invalid"

    def __init__(self, said: str, code: str) -> None:
        self.said, self.code = said, code


@pytest.fixture
def version_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version's folder as it is served, with Triton's own module faked."""
    templates = templates_folder()
    for file in (templates / "text-tokenize" / "1" / "model.py", cn_clip_vocabulary(), *templates.glob("cnclip_*.py")):
        shutil.copy(file, tmp_path)
    shutil.copyfile(cnclip_token_ids.__file__, tmp_path / "cnclip_token_ids.py")
    fake = ModuleType("triton_python_backend_utils")
    metric = SimpleNamespace(increment=lambda number: None)
    fake.Logger = SimpleNamespace(log_warn=print, log_info=print)  # type: ignore[attr-defined]
    fake.MetricFamily = lambda **_: SimpleNamespace(Metric=lambda labels: metric)  # type: ignore[attr-defined]
    fake.MetricFamily.COUNTER = 0  # type: ignore[attr-defined]
    fake.get_input_tensor_by_name = lambda request, name: request.inputs[name]  # type: ignore[attr-defined]
    fake.InferenceResponse = lambda tensors=(), error=None: error or tensors[0]  # type: ignore[attr-defined]
    fake.TritonError = Refusal  # type: ignore[attr-defined]
    fake.Tensor = lambda name, array: array  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in tmp_path.glob("cnclip_*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("told", "lengths"),
    [("40,52", {3: 40, 40: 40, 41: 52, 52: 52}), ("24,32,52", {3: 24, 25: 32, 33: 52}), ("52", {3: 52, 52: 52})],
)
def test_padding(version_folder: Path, told: str, lengths: dict[int, int]) -> None:
    model = loaded(version_folder, told)
    for tokens, length in lengths.items():
        (ids,) = model.execute([request("龟" * (tokens - 2))])
        assert ids.shape == (1, length)
        assert (ids != 0).sum() == tokens
    short, long = model.execute([request("龟"), request("龟" * 38)])  # tokenised together, and padded alike
    assert short.shape == long.shape


def test_a_request_with_a_bad_row_is_refused_alone(version_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = loaded(version_folder, "40,52")
    first, refused, last = model.execute([request("龟"), request("龟龟龟", b"\xff"), request("龟龟", "龟")])
    assert [(ids != 0).sum(axis=1).tolist() for ids in (first, last)] == [[3], [4, 3]]
    assert refused.code == "invalid"
    assert refused.said.startswith('bad rows: {"1": "')
    assert '"refused"' in capsys.readouterr().out


def loaded(version_folder: Path, lengths: str) -> Any:
    model: Any = runpy.run_path(str(version_folder / "model.py"))["TritonPythonModel"]()
    config = {name: {"string_value": value} for name, value in {"context_length": "52", "lengths": lengths}.items()}
    model.initialize({"model_config": json.dumps({"parameters": config}), "model_name": "n", "model_version": "1"})
    return model


def request(*texts: str | bytes) -> Any:
    import numpy as np

    rows = np.array([[text.encode() if isinstance(text, str) else text] for text in texts], dtype=object)
    return SimpleNamespace(inputs={"TEXT": SimpleNamespace(as_numpy=lambda: rows)}, request_id=lambda: "")
