"""`cnclip-bench gpu-report`: its steps on the CPU with the demo model, and what becomes of one that goes wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cnclip_bench._cli import app, main
from cnclip_bench.gpu_report import installed, measure, pytorch, served, steps
from cnclip_bench.gpu_report.findings import Findings
from cnclip_bench.gpu_report.in_process import who_ran
from cnclip_bench.gpu_report.inputs import BATCH_SIZES, SIZES, jpegs, token_ids
from cnclip_bench.gpu_report.measure import _environment
from cnclip_bench.gpu_report.memory import Meter
from cnclip_bench.gpu_report.repositories import request_for
from cnclip_bench.gpu_report.rows import Ceiling, Fact, Memory, PassedOver, Report, Setup, Timing, Work
from cnclip_bench.gpu_report.run import Outcome, Step, run_step
from cnclip_bench.gpu_report.served import measure_load
from cnclip_bench.gpu_report.timing import time_runs
from cnclip_bench.subject import onnx_session
from cnclip_builder.arch import get_arch
from cnclip_builder.checkpoint.load import load_checkpoint, make_meta_model
from cnclip_builder.checkpoint.towers import load_tower
from cnclip_card._jpegs import size_for_card
from PIL import Image
from typer.testing import CliRunner

from tests.benchmarks.odd_steps import crashes, good, hangs, lacks, quits, raises
from tests.conftest import DEMO, ROOT

SETUP = Setup("demo.json", "random:0", gpu=False, folder=Path(), seconds=0.01)


def run(function: Any, folder: Path, seconds: float = 60.0, remaining: float = 60.0) -> tuple[Any, list[Any]]:
    rows: list[Any] = []
    step = Step(function.__name__, function, seconds)
    return run_step(step, SETUP, remaining, folder / f"{function.__name__}.log", rows.append), rows


def test_a_step_that_goes_wrong_costs_itself_alone(tmp_path: Path) -> None:
    outcome, rows = run(good, tmp_path)
    assert (outcome.status, outcome.reason, rows) == ("done", "", [Fact("seconds", "0.01")])
    outcome, rows = run(raises, tmp_path)
    assert outcome.status == "failed"
    assert outcome.reason.startswith("no room left: free some, free some")
    assert outcome.reason.endswith(f"… ({tmp_path}/raises.log has all)")
    assert rows == [Fact("before", "it")]  # what was found before is kept
    assert "ValueError: no room" in (tmp_path / "raises.log").read_text()
    outcome, rows = run(lacks, tmp_path)
    assert (outcome.status, outcome.reason, rows) == ("passed over", "no such backend here", [])
    outcome, rows = run(crashes, tmp_path)
    assert outcome.status == "failed"
    assert "its process ended by SIGSEGV; its last line: " in outcome.reason
    assert "the last word" in (tmp_path / "crashes.log").read_text()
    assert rows == [Fact("before", "it")]
    outcome, _ = run(quits, tmp_path)
    assert (outcome.status, outcome.reason) == (
        "failed",
        f"its process ended by exit status 3; its last line: none ({tmp_path}/quits.log)",
    )


def test_a_step_that_hangs_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has what it starts in the background
    try:
        began = time.monotonic()
        outcome, rows = run(hangs, tmp_path, seconds=15.0)  # its process imports first, beside other tests
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.status == "failed"
    assert outcome.reason == f"it was stopped after 15 s; {tmp_path}/hangs.log has what it said"
    assert 15 <= outcome.seconds <= time.monotonic() - began < 60
    assert "stopped in order" in (tmp_path / "hangs.log").read_text()
    (child,) = rows
    with contextlib.suppress(ProcessLookupError):  # it has ended, and somebody has collected it
        assert select.select([os.pidfd_open(int(child.value))], [], [], 30)[0]  # busy cores take a while to end it
    outcome, rows = run(good, tmp_path, remaining=0.5)
    assert (outcome.status, rows) == ("passed over", [])
    assert "no time was left" in outcome.reason
    outcome = run_step(Step("x", good, 60, leave=50), SETUP, 50.5, tmp_path / "x.log", rows.append)
    assert (outcome.status, rows) == ("passed over", [])  # those after it need that time


def test_ctrl_c_ends_a_step_in_order_and_at_once(tmp_path: Path) -> None:
    """Its process is in a group of its own, which a terminal's interrupt does not reach; it went on for ten seconds."""

    def interrupted(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(Step("hangs", hangs, 60), SETUP, 60, tmp_path / "hangs.log", interrupted)
    assert "stopped in order" in (tmp_path / "hangs.log").read_text()


def test_shares_of_the_ceiling(tmp_path: Path) -> None:
    findings = Findings("x", SETUP, {})
    timing = Timing("y", "text", batch_size=64, length=24, first_ms=5.0, ms=2.0)
    assert timing.items_per_s == pytest.approx(32_000)
    assert findings.share(timing) is None
    findings.rows += [Ceiling(8192, "float16", 640.0), Work("text", 24, 4.0), Work("image", 0, 35.0), timing]
    assert findings.share(timing) == pytest.approx(0.2)  # 32,000 times 4 GFLOP is 128 TFLOP
    assert findings.best_in_process("text", 24, "y") == pytest.approx(32_000)
    assert findings.best_in_process("text", 52, "y") is None


def test_nodes_that_a_gpu_leaves_to_the_cpu_are_named() -> None:
    def node(kind: str, provider: str) -> dict[str, Any]:
        args = {"op_name": kind, "provider": f"{provider}ExecutionProvider"}
        return {"cat": "Node", "name": f"{kind}_kernel_time", "args": args}

    session = {"cat": "Session", "name": "model_run", "args": {}}
    cuda, fence = [node("MatMul", "CUDA")] * 5, {"cat": "Node", "name": "MatMul_fence_before", "args": {}}
    copies = [node("MemcpyToHost", "CUDA"), node("MemcpyFromHost", "CUDA")]
    assert who_ran([session, fence, *cuda]) == "5 by CUDA; 0 copies between them"
    left = [node("Pad", "CPU"), node("Shape", "CPU"), node("Pad", "CPU")]
    assert who_ran([*copies, *left, *cuda]) == "5 by CUDA; 3 by CPU (Pad 2, Shape); 2 copies between them"


def test_the_first_run_is_told_apart() -> None:
    pauses = iter([0.2, *[0.01] * 1000])
    first, others = time_runs(lambda: time.sleep(next(pauses)), 0.25)
    assert first >= 200
    assert 10 <= others < 200


def test_what_an_item_takes_of_the_processors() -> None:
    """Requests that do not count as steady took their part, too."""
    asked: list[int] = []
    rows: list[Any] = []
    took = partial(next, iter([1.0, 3.0]))
    measure_load(SETUP, rows.append, took, "card", "x", "image", partial(asked.append, 1), items=4, at_once=2)
    (rate,) = rows
    assert rate.host_ms == pytest.approx(2000 / (4 * len(asked)))


def test_the_most_that_a_load_takes_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are in its memory while a request is under way, and gone behind it."""
    taken = chain([100.0, 100.0, 900.0], repeat(150.0))
    monkeypatch.setattr(Meter, "_taken_mib", lambda self: next(taken))
    rows: list[Any] = []
    with Meter(gpu=True).watching(rows.append, "card", "largest"):
        time.sleep(0.1)
    assert rows == [Memory("card", "largest", 800.0)]


def test_what_is_sent() -> None:
    for size in SIZES.values():
        made = jpegs(size)
        assert len(set(made)) == len(made) == 4
        for one in made:
            with Image.open(io.BytesIO(one)) as image:
                assert (image.size, image.format) == (size, "JPEG")
    ids = token_ids(3, 24)
    assert (ids.shape, ids.dtype, (ids != 0).all()) == ((3, 24), np.int32, True)
    assert set(ids[:, 0]) == {101}
    assert set(ids[:, -1]) == {102}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_modern_pytorch_has_the_same_features(tower: Any) -> None:
    arch = get_arch(str(DEMO / "demo.json"))
    module: Any = load_tower(load_checkpoint(DEMO / "clip_cn_demo.pt", arch), tower)
    ids = torch.from_numpy(token_ids(2, 24)).long()
    ids[1, 10:] = 0  # padding
    rows = ids if tower == "text" else torch.rand(2, 3, arch.resolution, arch.resolution)
    with torch.inference_mode():
        expected = module(rows)
        assert pytorch.modernise(module.clip, tower)
        torch.testing.assert_close(module(rows), expected, atol=1e-5, rtol=1e-5)


def test_a_resnet_has_no_attention_to_replace() -> None:
    assert not pytorch.modernise(make_meta_model(get_arch("RN50")), "image")


def test_that_onnxruntime_runs_on_the_card_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library is loaded with a driver that is too old, too, and so was said to be in order."""

    class Session:
        def __init__(self, file: str, **options: Any) -> None:
            assert onnx.load(file).graph.node[0].op_type == "Neg"
            assert options["providers"][0][0] == "CUDAExecutionProvider"
            raise RuntimeError("CUDA failure 35: too old ; GPU=-1")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    *_, told = installed._onnxruntime()
    assert told.what == "ONNX Runtime's CUDA"
    assert re.match("does not run: unable to load model 'one' from '.*': CUDA failure 35: too old; see", told.value)


def test_what_is_compared_with_a_gpu_is_not_measured_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ONNX Runtime went on with the CPU where CUDA's libraries or a newer driver were missing."""

    class Session:
        def __init__(self, *_: Any, enable_fallback: int = 1, **__: Any) -> None:
            if not enable_fallback:
                raise RuntimeError("CUDA failure 35: too old ; GPU=-1")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(ValueError, match="unable to load model 'm' from .*: CUDA failure 35: too old; see"):
        onnx_session(tmp_path / "m/1/model.onnx", gpu=True)


def test_servers_find_their_own_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of pip's wheels came before what a container's tritonserver has of cuDNN and TensorRT."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/container")
    assert _environment()["LD_LIBRARY_PATH"] == "/container"


def test_of_several_gpus_one_serves(tmp_path: Path) -> None:
    """Rates of eight cards would be told as one's, beside what one did in process."""
    setup = Setup("ViT-B-16", "random:0", gpu=True, folder=tmp_path, seconds=0.01)
    for asked in (request_for(setup, "onnxruntime"), request_for(setup, "tensorrt")):
        assert asked.serving.gpus == (0,)
    decodes = request_for(setup, "onnxruntime", preprocess="gpu").serving
    assert (decodes.gpus, decodes.preprocess, decodes.accelerator) == ((0,), "gpu", "cuda")
    assert request_for(replace(SETUP, arch="ViT-B-16"), "onnxruntime").serving.gpus is None


def test_decoding_is_timed_on_the_card_and_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels' twin, and nvImageCodec on the processor; what is served with a card was not run."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: the extra [gpu-decode] has it")
    import cnclip_card
    from cnclip_bench.gpu_report import card
    from cnclip_card._decoder import NvImageCodec

    from tests.resize.card_twin import Twin, can_compile, compile_twin

    if not can_compile():
        pytest.skip("there is no C++ compiler")
    twin = Twin(compile_twin(tmp_path))

    def open_card(side: int, formats: Any, *, threads: int) -> cnclip_card.Card:
        return cnclip_card.Card(twin, NvImageCodec(None, threads), side=side, formats=formats, memory=1 << 30)

    monkeypatch.setattr(cnclip_card, "open_card", open_card)
    monkeypatch.setattr(card, "_require", lambda setup: None)
    monkeypatch.setattr(card, "SIZES", {"64x48": (64, 48)})
    monkeypatch.setattr(card, "_BATCHES", (1, 3))
    rows: list[Any] = []
    card.time_card(Setup("ViT-B-16", "random:0", gpu=True, folder=tmp_path, seconds=0.01), rows.append)
    told, damaged, *rates = rows
    assert told.value.startswith("JPEGs are decoded by nvImageCodec")
    assert re.match("of 64 the card decodes [1-9][0-9]*, of them [0-9]+ that are refused exactly and 0", damaged.value)
    assert [(one.items, "on the card" in one.what) for one in rates] == [(1, True), (1, False), (3, True), (3, False)]
    assert all(one.per_s > 0 and one.host_ms > 0 for one in rates)


def test_a_cards_distance_is_that_of_photographs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the builder's fifteen pictures four go to the card."""
    from cnclip_bench.gpu_report import card

    def built(request: Any) -> Any:
        images = [image.read_bytes() for image in request.card_images.iterdir()]
        assert sorted(size_for_card(image, ["JPEG"]) for image in images) == 4 * [(640, 480)] + 4 * [(1920, 1080)]
        assert request.serving.preprocess == "gpu"
        raise PassedOver("seen")

    monkeypatch.setattr("cnclip_builder.build.build_repository", built)
    monkeypatch.setattr(card, "_require", lambda setup: None)
    with pytest.raises(PassedOver, match="seen"):
        card.build_for_card(Setup("ViT-B-16", "random:0", gpu=True, folder=tmp_path, seconds=0.01), [].append)


def in_this_process(step: Step, setup: Setup, remaining_s: float, log: Path, report: Report) -> Outcome:
    """As `run_step`, of steps that go well or have nothing to do."""
    if step.name == "look around":
        return run_step(step, setup, remaining_s, log, report)
    try:
        step.function(setup, report)
    except PassedOver as nothing:
        return Outcome(step.name, "passed over", 0.0, str(nothing))
    return Outcome(step.name, "done", 0.0)


@pytest.fixture(params=["in one process", pytest.param("as on a card", marks=pytest.mark.slow)])
def steps_apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether each step runs in a process of its own, which imports torch, and under the loads that a card gets."""
    if request.param == "as on a card":
        return True
    monkeypatch.setattr(measure, "run_step", in_this_process)
    for tower in BATCH_SIZES:
        monkeypatch.setitem(BATCH_SIZES, tower, (1, 8))
    for name in ("_PIXELS", "_IDS"):
        monkeypatch.setattr(served, name, ((1, 1), (8, 2)))
    monkeypatch.setattr(served, "_FEW_AND_MANY", ((1, 1), (1, 3)))
    monkeypatch.setattr(served, "_MIXED", (1, 7))
    monkeypatch.setattr(served, "_LARGEST", 8)
    return False


@pytest.mark.triton
def test_every_step_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_apart: bool) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    result = CliRunner().invoke(app, ["gpu-report", "--seconds", "0.01", "--output", "out"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out/gpu-report.json").read_text())
    figures = report["figures"]
    assert report["what"] == "demo on the CPU"
    ended = {one["name"]: (one["status"], one["reason"]) for one in figures["steps"]}
    assert list(ended) == [step.name for step in steps.STEPS]
    plans = {name for name in ended if "plans" in name}
    cards = {name for name in ended if "on the card" in name}
    assert {name for name, (status, _) in ended.items() if status == "done"} == set(ended) - plans - cards
    assert ended["build plans"] == ("passed over", "plans are for GPUs, and this machine shows none")
    no_card = ("passed over", "nvImageCodec is measured on GPUs, and this machine shows none")
    assert ended["decode on the card"] == ended["build for decoding on the card"] == no_card
    assert ended["load with decoding on the card"][0] == "passed over"
    assert ended["load plans"] == ("passed over", "it needs what 'build plans' was to make")
    timed = {(one["way"], one["tower"], one["length"], one["batch_size"]) for one in figures["in_process"]}
    ways = ("ONNX Runtime", "PyTorch, cn_clip's own", "PyTorch, scaled_dot_product_attention")
    shapes = [("image", 0), ("text", 24), ("text", 40), ("text", 52)]
    assert timed == {(way, *shape, size) for way in ways for shape in shapes for size in BATCH_SIZES[shape[0]]}
    assert all(one["first_ms"] > 0 and one["ms"] > 0 and one["share_of_ceiling"] > 0 for one in figures["in_process"])
    assert [(one["tower"], one["rows"]) for one in figures["verified"]] == [("image", 15), ("text", 23)]
    assert all(one["cosine"] < one["cosine_bound"] == 1e-6 for one in figures["verified"])
    sent = {(one["tower"], one["what"].split(",")[0]) for one in figures["served"]}
    assert sent == {("image", "pixels"), ("image", "JPEGs"), ("text", "ids"), ("text", "texts")}
    at_once = {
        what: {one["at_once"] for one in figures["served"] if one["what"] == what} for what in ("pixels", "texts")
    }
    assert at_once == (
        {"pixels": {1, 16, 8, 4}, "texts": {1, 16}} if steps_apart else {"pixels": {1, 2}, "texts": {1, 3}}
    )
    alone, both = (
        [
            (one["what"], one["items"], one["at_once"])
            for one in figures["served"]
            if ("two encoders" in one["what"]) == two
        ]
        for two in (False, True)
    )
    of_encoders = [load for load in alone if load[0].startswith(("pixels", "ids"))]
    assert both == [(f"{what}, two encoders", *load) for what, *load in of_encoders]
    assert all(one["per_s"] > 0 and one["median_ms"] <= one["p95_ms"] for one in figures["served"])
    assert {one["what"] for one in figures["memory"]} >= {"server, ready", "image encoder, loaded"}
    facts = {one["what"]: one["value"] for one in figures["installed"]}
    assert {"card", "PyTorch", "ONNX Runtime", "TensorRT", "tritonserver"} <= set(facts)
    for tower in ("image", "text"):
        assert re.fullmatch("[0-9]+ by CPU; 0 copies between them", facts[f"{tower} encoder's nodes"])
    page = (tmp_path / "out/gpu-report.md").read_text()
    for said in ("# demo on the CPU", "| load ONNX Runtime |", "**", "| images | ONNX Runtime |", "1080p"):
        assert said in page


def test_what_is_not_there_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    monkeypatch.chdir(empty)
    for arguments, message in (
        ([], "no GPU, and examples/demo/demo.json is not here: name an --arch"),
        (["--arch", "ViT-B-16", "--checkpoint", "none.pt"], "there is no checkpoint none.pt: name a .pt file"),
        (["--arch", "ViT-Z"], "no architecture is named 'ViT-Z'"),
    ):
        monkeypatch.setattr(sys, "argv", ["cnclip-bench", "gpu-report", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert message in capsys.readouterr().err
    assert not list(empty.iterdir())
