"""`cnclip-bench`: its arithmetic, and every command once, on the demo model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cn_clip.clip import image_transform, tokenize
from cnclip_bench._cli import app
from cnclip_bench.alternatives import cn_clip_loop, transformers_model
from cnclip_bench.inputs import captions, images, repeated
from cnclip_bench.stats import Latency, in_turns, median_ratio
from cnclip_bench.subject import Subject
from cnclip_builder.arch import get_arch
from cnclip_builder.checkpoint import load_checkpoint
from cnclip_builder.samples import sample_images
from cnclip_builder.towers import load_tower
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import ROOT

DEMO_ARCH, DEMO_CHECKPOINT = (str(ROOT / "examples/demo" / name) for name in ("demo.json", "clip_cn_demo.pt"))


def test_a_series_in_figures() -> None:
    one = Latency.of("x", [0.001 * number for number in range(1, 102)])
    assert (one.rounds, one.min_ms, one.max_ms) == (101, pytest.approx(1), pytest.approx(101))
    assert (one.mean_ms, one.median_ms) == (pytest.approx(51), pytest.approx(51))
    assert (one.p95_ms, one.p99_ms) == (pytest.approx(96), pytest.approx(100))
    assert one.sd_ms == pytest.approx((101 * 102 / 12) ** 0.5)  # the sample's, of 1 to 101
    assert Latency.of("x", [0.5]).sd_ms == 0
    with pytest.raises(ValueError, match="was not timed"):
        Latency.of("x", [])


def test_turns_are_fair() -> None:
    ran: list[str] = []
    clock: Iterator[int] = iter(range(1000))
    jobs = {name: lambda name=name: ran.append(name) for name in "abc"}  # type: ignore[misc]
    seconds = in_turns(jobs, 3, lambda: float(next(clock)))
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc"
    assert seconds == {name: [1.0] * 3 for name in "abc"}


def test_ratios_are_of_rounds() -> None:
    # The machine was twice as slow in the second round, for both.
    assert median_ratio([1.0, 2.0, 9.0], [2.0, 4.0, 9.0]) == 0.5


def test_what_is_measured_with(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.jpg").write_bytes(sample_images()["photo.jpg"])
    (tmp_path / "b.txt").write_text("一\n\n二\n")
    assert len(images(tmp_path, 32)) == 1
    assert captions(tmp_path / "b.txt") == ["一", "二"]
    assert len(images(None, 32)) == len(sample_images())
    assert repeated([1, 2], 5) == [1, 2, 1, 2, 1]
    (tmp_path / "deep/a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no file in .* is an image"):
        images(tmp_path, 32)


@pytest.mark.triton
def test_every_command(folder: Path) -> None:
    demo = ["--arch", DEMO_ARCH, "--checkpoint", DEMO_CHECKPOINT, "--repository", str(folder / "build/repository")]
    few = ["--rounds", "2"]
    for command in (
        ["latency", *demo, *few, "--batch-size", "2"],
        ["served", *demo, *few, "--items", "8"],
        ["throughput", *demo, "--rounds", "1", "--seconds", "0.1", "--concurrency", "1", "--concurrency", "2"],
        ["stages", *demo, "--items", "8"],
        ["preprocess", "--arch", DEMO_ARCH, *few],
        ["tokenize", *few],
    ):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert not (folder / "build/bench/repository").exists()  # the one that was named is measured
    written = {path.name for path in (folder / "build/benchmarks").iterdir()}
    names = {"latency-image-2", "latency-text-2", "served-image", "served-text", "stages-image", "stages-text"}
    names |= {"throughput-image", "throughput-text"}
    assert written == {f"{name}.{end}" for name in names | {"preprocess", "tokenize"} for end in ("json", "png")}
    latency = json.loads((folder / "build/benchmarks/latency-image-2.json").read_text())
    assert [one["name"] for one in latency["figures"]] == ["PyTorch", "ONNX fp32", "ONNX fp16", "served"]
    assert all(one["median_ms"] > 0 for one in latency["figures"])
    served = json.loads((folder / "build/benchmarks/served-text.json").read_text())
    assert (served["figures"]["items"], len(served["figures"]["rates"]["served"])) == (32, 2)
    loads = json.loads((folder / "build/benchmarks/throughput-text.json").read_text())["figures"]
    assert [(one["concurrency"], one["batch_size"]) for one in loads] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    assert all(0 < one["latency"]["median_ms"] <= one["latency"]["p99_ms"] for one in loads)
    stages = json.loads((folder / "build/benchmarks/stages-text.json").read_text())["figures"]
    assert set(stages) == {f"text-{step} {what}" for step in ("tokenize", "encoder") for what in ("queue", "compute")}
    assert stages["text-encoder compute"] > 0


@pytest.mark.slow
@pytest.mark.triton
def test_what_users_would_pick_instead(folder: Path) -> None:
    demo = ["--arch", DEMO_ARCH, "--checkpoint", DEMO_CHECKPOINT]
    result = CliRunner().invoke(app, ["compare", *demo, "--rounds", "1", "--items", "4"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for tower, items in (("image", 4), ("text", 16)):
        figures = json.loads((folder / f"build/benchmarks/compare-{tower}.json").read_text())["figures"]
        assert figures["items"] == items
        compared = {"cn_clip (PyTorch)", "transformers (PyTorch)", "infinity (PyTorch)"} - set(figures["left_out"])
        assert set(figures["rates"]) == compared | {"served"}
        assert "cn_clip (PyTorch)" in compared
        assert set(figures["median_ratios"]) == compared
        assert (folder / f"build/benchmarks/compare-{tower}.png").exists()


def test_cn_clips_own_loop_gives_cn_clips_features() -> None:
    checkpoint = ROOT / "examples/demo/clip_cn_demo.pt"
    arch = get_arch(str(ROOT / "examples/demo/demo.json"))
    samples, texts = list(sample_images().values())[:2], ["杰尼龟", "皮卡丘"]
    subject = Subject(arch, checkpoint, Path(), Path(), arch.slug, samples, texts)
    loaded = load_checkpoint(checkpoint, arch)
    pixels = torch.stack([image_transform(arch.resolution)(Image.open(io.BytesIO(image))) for image in samples])
    with cn_clip_loop(subject) as encoders, torch.inference_mode():
        for tower, items, inputs in (("image", samples, pixels), ("text", texts, tokenize(texts))):
            features = load_tower(loaded, tower)(inputs)
            expected = (features / features.norm(dim=-1, keepdim=True)).numpy()
            np.testing.assert_allclose(encoders[tower](items), expected, atol=1e-6)


def test_no_resnet_in_transformers() -> None:
    subject = Subject(get_arch("RN50"), Path(), Path(), Path(), "rn50", [], [])
    with (
        pytest.raises(NotImplementedError, match="no ChineseCLIP with a ResNet, which RN50 is"),
        transformers_model(subject),
    ):
        pass
