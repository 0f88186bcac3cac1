"""The measurement of served encoders, on the CPU; what it says of a GPU needs one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.export.fused import write_fused_encoder
from cnclip_builder.tensors import TOWERS

from tests.benchmarks.loading import load

gpu_encoders = load("gpu_encoders")


def test_each_size_of_a_batch_has_a_row(
    tiny_artefacts: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_encoders.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    folders = []
    for tower in TOWERS:
        folders.append(tmp_path / tower)
        (folders[-1] / "1").mkdir(parents=True)
        artefact = tiny_artefacts.get(tower, "fp16")
        write_fused_encoder(tiny_artefacts.checkpoint.file.path, artefact, folders[-1] / "1")
    words = ["gpu_encoders.py", *map(str, folders), "--batch", "1", "--batch", "3", "--length", "24", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", words)
    gpu_encoders.main()
    rows = re.findall(r"^\| (\d[\d x]*) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1 x 32 x 32 x 3", "3 x 32 x 32 x 3", "1 x 24", "3 x 24"]
    for shape, first, median, rate in rows:
        assert float(first) > 0
        batch = int(shape.split()[0])
        assert int(rate.replace(",", "")) == pytest.approx(batch / float(median) * 1e3, rel=0.1, abs=1)
