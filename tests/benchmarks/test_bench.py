"""`cnclip-bench`: its arithmetic, and every command once, on the demo model."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from cn_clip.clip import image_transform, tokenize
from cnclip_bench import comparisons, costs
from cnclip_bench._cli import _encoders, _gateway, _jobs, _load, app, main
from cnclip_bench.alternatives import clip_as_service_executor, cn_clip_loop, transformers_model
from cnclip_bench.inputs import captions, images, repeated
from cnclip_bench.int8 import Pair, read_pairs
from cnclip_bench.jobs import RATE_WAYS, write_sources
from cnclip_bench.jobs_child import InMemory
from cnclip_bench.savings import has_padded_encoder
from cnclip_bench.stats import Latency, median_ratio, timed_in_turns
from cnclip_bench.subject import Subject, make_subject
from cnclip_builder.arch import get_arch
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import load_tower
from cnclip_builder.export.files import onnx_name
from cnclip_builder.parity.samples import sample_images
from cnclip_client import Client, ServerUnreachable
from cnclip_client.sources import image_source
from cnclip_machine import usable_cores
from cnclip_server import ServerError, TritonServer
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
    seconds = timed_in_turns(jobs, 3, lambda: float(next(clock)))
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
    (tmp_path / "gbk.txt").write_text("黑猫\n", encoding="gbk")
    with pytest.raises(ValueError, match=r"gbk\.txt is not UTF-8 \(GBK\?\); convert it \(iconv"):
        captions(tmp_path / "gbk.txt")
    assert len(images(None, 32)) == len(sample_images())
    assert repeated([1, 2], 5) == [1, 2, 1, 2, 1]
    (tmp_path / "deep/a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no file in .* is an image"):
        images(tmp_path, 32)


def test_encoders_alone_are_not_built_over(tmp_path: Path) -> None:
    (tmp_path / "demo-image-encoder").mkdir()
    with pytest.raises(ValueError, match="has encoders of demo alone, .*: give a --repository with all models"):
        make_subject(DEMO_ARCH, DEMO_CHECKPOINT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo-image-encoder"]


@pytest.mark.parametrize(
    "error", [ServerError("no tritonserver"), ServerUnreachable("no answer", url=""), OSError("full")]
)
def test_errors_are_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("cnclip_bench._cli.app", fail)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.fixture
def one_server(demo_server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has commands use it that would each start a server of the same repository."""

    @contextmanager
    def serving(subject: Subject) -> Iterator[tuple[TritonServer, Client]]:
        with Client(demo_server.grpc_url, model=subject.name) as client:
            yield demo_server, client

    for module in (_encoders, _gateway, _jobs, _load):
        monkeypatch.setattr(module, "serving", serving)


@pytest.mark.triton
@pytest.mark.timeout(900)  # some twenty commands, on a machine that may be busy
def test_every_command(folder: Path, demo_repository: Path, one_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str]) -> None:
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    demo = ["--arch", DEMO_ARCH, "--checkpoint", DEMO_CHECKPOINT, "--repository", str(demo_repository)]
    few = ["--rounds", "2"]
    run(["latency", *demo, *few, "--batch-size", "2"])
    run(["throughput", *demo, "--rounds", "1", "--seconds", "0.1", "--concurrency", "1", "--concurrency", "2"])
    for name in ("latency-image-2.png", "throughput-image.png"):  # of each of the two kinds of plots
        with Image.open(folder / "build/benchmarks" / name) as plot:
            plot.load()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **_: file.touch())
    for command in (
        ["served", *demo, *few, "--items", "8"],
        ["stages", *demo, "--items", "8"],
        ["preparation", *demo, *few, "--items", "32", "--preparers", "1"],
        ["preprocess", "--arch", DEMO_ARCH, "--rounds", "1"],
        ["host", "--arch", DEMO_ARCH, *few, "--workers", "2", "--seconds", "0.01"],
        ["tokenize", "--rounds", "1"],
        ["savings", *demo, *few],
        ["startup", *demo, "--rounds", "1"],
        ["memory", *demo, "--max-batch-size", "8"],
        ["gateway", *demo, *few, "--concurrency", "3", "--seconds", "0.1", "--singles", "5"],
    ):
        run(command)
    assert not (folder / "build/bench/repository").exists()  # the one that was named is measured
    written = {path.name for path in (folder / "build/benchmarks").iterdir()}
    names = {"latency-image-2", "latency-text-2", "served-image", "served-text", "stages-image", "stages-text"}
    names |= {"throughput-image", "throughput-text", "preprocess", "host", "tokenize", "startup", "memory"}
    names |= {"preparation-image", "preparation-text", "gateway-image", "gateway-text"}
    names |= {"savings-last-block-image", "savings-last-block-text", "savings-batches", "savings-padding"}
    assert written == {f"{name}.{end}" for name in names for end in ("json", "png")}
    latency = json.loads((folder / "build/benchmarks/latency-image-2.json").read_text())
    assert [one["name"] for one in latency["figures"]] == ["PyTorch", "ONNX fp32", "ONNX fp16", "served"]
    assert all(one["median_ms"] > 0 for one in latency["figures"])
    served = json.loads((folder / "build/benchmarks/served-text.json").read_text())
    assert (served["figures"]["items"], len(served["figures"]["rates"]["served"])) == (32, 2)
    preprocessing = json.loads((folder / "build/benchmarks/preprocess.json").read_text())["figures"]
    assert set(preprocessing["rates"]) >= {"cn_clip", "served", "reduced"}
    assert 0 < preprocessing["reduced_decoding"]["changed"] < preprocessing["reduced_decoding"]["images"]
    host = json.loads((folder / "build/benchmarks/host.json").read_text())["figures"]["measured"]
    assert [(one["workers"], one["way"]) for one in host] == [(1, "threads"), (2, "threads"), (2, "processes")]
    assert host[0]["of_linear"] == 1
    assert all(len(one["rounds_images_per_s"]) == 2 and one["of_linear"] > 0 for one in host)
    for tower in ("image", "text"):
        prepared = json.loads((folder / f"build/benchmarks/preparation-{tower}.json").read_text())["figures"]
        assert {by: len(rounds) for by, rounds in prepared.items()} == {"server": 2, "client": 2}
        assert all(one["items_per_s"] > 0 for rounds in prepared.values() for one in rounds)
    # What decodes is not the server's any more.
    images = json.loads((folder / "build/benchmarks/preparation-image.json").read_text())["figures"]
    server, client = (np.sum([one["server_ms"] for one in images[by]]) for by in ("server", "client"))
    assert 0 < client < server
    starts = json.loads((folder / "build/benchmarks/startup.json").read_text())["figures"]
    assert [(one["arch"], len(one["seconds"])) for one in starts] == [("demo", 1)]
    footprints = json.loads((folder / "build/benchmarks/memory.json").read_text())["figures"]["text"]
    assert [one["max_batch_size"] for one in footprints] == [8]
    # Pages that other tests' servers share count in parts, and these come and go.
    assert all(0 < one["idle_mib"] < 2 * one["peak_mib"] for one in footprints)
    loads = json.loads((folder / "build/benchmarks/throughput-text.json").read_text())["figures"]
    assert [(one["concurrency"], one["batch_size"]) for one in loads] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    assert all(0 < one["latency"]["median_ms"] <= one["latency"]["p99_ms"] for one in loads)
    added = json.loads((folder / "build/benchmarks/gateway-image.json").read_text())["figures"]
    assert (added["concurrency"], {way: len(rates) for way, rates in added["items_per_s"].items()}) == (
        3,
        {"client": 2, "gateway": 2},
    )
    assert added["ratio"] > 0
    assert added["added_median_ms"] == pytest.approx(
        added["alone"]["gateway"]["median_ms"] - added["alone"]["client"]["median_ms"]
    )
    stages = json.loads((folder / "build/benchmarks/stages-text.json").read_text())["figures"]
    assert set(stages) == {f"text-{step} {what}" for step in ("tokenize", "encoder") for what in ("queue", "compute")}
    assert stages["text-encoder compute"] > 0


def test_int8_beside_fp32(folder: Path) -> None:
    """The demo's encoders are too small to gain by INT8: they are compared all the same, and said to be refused."""
    command = ["int8", "--arch", DEMO_ARCH, "--checkpoint", DEMO_CHECKPOINT, "--rounds", "2"]
    pairs = ["--pairs", str(ROOT / "examples/demo/captions.tsv")]
    result = CliRunner().invoke(app, [*command, *pairs], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for tower in ("image", "text"):
        figures = json.loads((folder / f"build/benchmarks/int8-{tower}.json").read_text())["figures"]
        assert figures["rows"] == 6
        assert 0 < figures["centred_median"] <= figures["centred_worst"] < 2e-2
        assert figures["megabytes"][1] < figures["megabytes"][0]
    recalls = json.loads((folder / "build/benchmarks/int8-recall.json").read_text())["figures"]
    assert recalls["fp32"] == recalls["int8"] == dict.fromkeys(recalls["fp32"], 1.0)
    assert set(recalls["fp32"]) == {f"{way} R@{k}" for way in ("text to image", "image to text") for k in (1, 5)}


def test_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    file = tmp_path / "pairs.tsv"
    file.write_text("file\tcaption\na.png\t一\na.png\t二\n")
    assert read_pairs(file) == [Pair(b"a", "一"), Pair(b"a", "二")]
    file.write_text("file\tcaption\r\na.png\t一\x85二\r\na.png\t三\r\n", encoding="utf-8-sig", newline="")
    assert read_pairs(file) == [Pair(b"a", "一\x85二"), Pair(b"a", "三")]  # a line ends where it does for spreadsheets
    for lines, message in (
        ("file\tcaption\na.png\t一\nb.png\t二\n", "line 3: write an image's file, a tab"),
        ("file\tcaption\na.png 一\n", "line 2: write an image's file, a tab"),
        ("file\tcaption\na.png\t一\n", "has 1 pairs"),
    ):
        file.write_text(lines)
        with pytest.raises(ValueError, match=message):
            read_pairs(file)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_building_beside_cn_clip(folder: Path) -> None:
    result = CliRunner().invoke(app, ["build", "--arch", "RN50"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    ours, theirs = json.loads((folder / "build/benchmarks/build.json").read_text())["figures"]
    assert (ours["what"], theirs["what"]) == ("make repo", "pytorch_to_onnx.py")
    assert all(one["problem"] == "" and one["seconds"] > 0 and one["peak_mib"] > 100 for one in (ours, theirs))


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    script = "import sys; print('one'); sys.exit('no room for it')"
    cost = costs._timed("RN50", "make repo", 1.0, [sys.executable, "-c", script], str(tmp_path))
    assert cost.problem == "no room for it"
    assert cost.seconds > 0


@pytest.mark.slow
@pytest.mark.triton
def test_what_users_would_pick_instead(folder: Path) -> None:
    demo = ["--arch", DEMO_ARCH, "--checkpoint", DEMO_CHECKPOINT]
    result = CliRunner().invoke(app, ["compare", *demo, "--rounds", "1", "--items", "4"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for tower, items in (("image", 4), ("text", 16)):
        figures = json.loads((folder / f"build/benchmarks/compare-{tower}.json").read_text())["figures"]
        assert figures["items"] == items
        alternatives = {f"{name} (PyTorch)" for name in ("cn_clip", "transformers", "infinity", "clip-as-service")}
        compared = alternatives - set(figures["left_out"])
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


CLIP_AS_SERVICE = """
import numpy as np
class CLIPEncoder:
    def __init__(self, name, device):
        print("loading", name)
        assert (name, device) == ("CN-CLIP/ViT-B-16", "cpu")
    async def encode(self, documents):
        documents.embeddings = np.array([[len(one.text if one.blob is None else one.blob), 1] for one in documents], dtype=np.float64)
"""
DOCARRAY = """
class Document:
    def __init__(self, blob=None, text=None):
        self.blob, self.text = blob, text
class DocumentArray(list):
    pass
"""


def test_clip_as_service_in_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip_server/executors").mkdir(parents=True)
    (tmp_path / "clip_server/executors/clip_torch.py").write_text(CLIP_AS_SERVICE)
    (tmp_path / "docarray.py").write_text(DOCARRAY)
    subject = Subject(get_arch("ViT-B-16"), tmp_path / "docarray.py", Path(), Path(), "vit-b-16", [], [])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with clip_as_service_executor(subject, Path(sys.executable)) as encoders:
        for items in ([b"abc", b""], [b"x" * 100_000]):
            features = encoders["image"](items)
            expected = np.array([[len(item), 1] for item in items], dtype=np.float32)
            np.testing.assert_allclose(features, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
        np.testing.assert_allclose(encoders["text"](["两字"])[0], np.array([2, 1]) / 5**0.5, rtol=1e-6)
    monkeypatch.delenv("PYTHONPATH")
    for python, message in ((None, "needs an environment of its own"), (Path(sys.executable), "its executor ended")):
        with (
            pytest.raises(NotImplementedError, match=message),
            clip_as_service_executor(subject, python),
        ):
            pass


def test_no_resnet_in_transformers() -> None:
    subject = Subject(get_arch("RN50"), Path(), Path(), Path(), "rn50", [], [])
    with (
        pytest.raises(NotImplementedError, match="no ChineseCLIP with a ResNet, which RN50 is"),
        transformers_model(subject),
    ):
        pass


@pytest.mark.parametrize(("gpu", "target", "precision"), [(True, "gpu", "fp16"), (False, "cpu", "fp32")])
def test_what_is_measured_is_built_for_this_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, target: str, precision: str
) -> None:

    class Built(Exception):
        """Ends it there."""

    def build(request: Any) -> None:
        assert (request.serving.target, request.serving.precision) == (target, precision)
        raise Built

    monkeypatch.setattr("cnclip_builder.repository.serving.has_gpu", lambda: gpu)
    monkeypatch.setattr("cnclip_builder.build.build_repository", build)
    with pytest.raises(Built):
        make_subject("RN50", "random:0", folder / "new")


def test_a_missing_tritonserver_is_told_before_a_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(request: Any) -> None:
        pytest.fail("it was built")

    monkeypatch.setattr("cnclip_builder.build.build_repository", build)
    monkeypatch.setenv("TRITONSERVER", str(folder / "none"))
    with pytest.raises(ServerError, match="TRITONSERVER=.*none is not an executable file"):
        make_subject("RN50", "random:0", folder / "new")
    with pytest.raises(pytest.fail.Exception, match="it was built"):  # which only reads what would be served
        make_subject("RN50", "random:0", folder / "new", served=False)


def test_a_process_decodes_in_as_many_threads_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int | None = None) -> None:
            asked.append(workers)
            super().__init__(workers)

    subject = Mock(arch=Mock(resolution=32), items=lambda tower: [sample_images()["photo.jpg"]])
    monkeypatch.setattr(comparisons, "ThreadPoolExecutor", Pool)
    comparisons.served_over_in_process(subject, "image", 2, 1, Mock(), [2])
    assert asked == [usable_cores()]


def test_what_the_first_request_takes_is_no_stages_share(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    class Client:
        def encode_texts(self, items: list[str], batch_size: None) -> None:
            nonlocal asked
            asked += 1

    def statistics(model: str) -> Any:
        """Of two items a request, the first request taking a second, and a millisecond each later one."""
        ns = 0 if asked == 0 else 1_000_000_000 + (asked - 1) * 1_000_000
        took, none = Mock(ns=ns), Mock(ns=0)
        times = Mock(queue=took, compute_input=none, compute_infer=took, compute_output=none)
        return Mock(model_stats=[Mock(inference_count=2 * asked, inference_stats=times, batch_stats=[times])])

    server = MagicMock()
    server.return_value.__enter__.return_value.get_inference_statistics = statistics
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", server)
    subject = Mock(items=lambda tower: ["a", "b"])
    found = comparisons.stages(subject, "text", 2, "", Client())  # type: ignore[arg-type]
    assert found == dict.fromkeys(found, 0.5)


def test_padding_is_measured_where_all_runs_on_the_cpu(tmp_path: Path) -> None:
    arch = get_arch(DEMO_ARCH)
    subject = Subject(arch, Path(), tmp_path, tmp_path, "demo", [], [])
    (tmp_path / onnx_name(arch, "text", "fp32")).touch()
    (tmp_path / "demo-text-encoder").mkdir()
    for kind in ("CPU", "GPU"):
        config = f"instance_group [ {{ kind: KIND_{kind} }} ]"
        (tmp_path / "demo-text-encoder/config.pbtxt").write_text(config)
        assert has_padded_encoder(subject) == (kind == "CPU")


def test_the_weights_of_a_build_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever a checkpoint's file holds beside them, as an optimizer's state, or in half their size."""
    monkeypatch.setattr(costs, "_timed", lambda arch, what, weights_mib, command, folder: weights_mib)
    weights = load_checkpoint(Path(DEMO_CHECKPOINT), get_arch(DEMO_ARCH)).state_dict.values()
    expected = sum(one.numel() for one in weights) * 4 / 2**20
    assert costs.build_costs(DEMO_ARCH, DEMO_CHECKPOINT) == [pytest.approx(expected, rel=0.01)] * 2


def test_jobs_from_a_source_beside_memory(folder: Path, demo_repository: Path, one_server: None) -> None:
    command = ["jobs", "--arch", DEMO_ARCH, "--checkpoint", DEMO_CHECKPOINT, "--items", "24", "--rounds", "1"]
    command += ["--repository", str(demo_repository), "--memory-items", "8", "--memory-items", "24"]
    command += ["--source", "tar"]  # the next test has the others
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads((folder / "build/benchmarks/jobs.json").read_text())["figures"]
    assert set(figures["items_a_second"]) == {"memory", "tar"}
    assert all(rate > 0 for rates in figures["items_a_second"].values() for rate in rates)
    peaks = json.loads((folder / "build/benchmarks/jobs-memory.json").read_text())["figures"]
    assert {way: set(by_count) for way, by_count in peaks.items()} == {"tar": {"8", "24"}}
    assert all(20 < mib < 2000 for mib in peaks["tar"].values())


def test_the_sources_of_jobs_hold_the_same_items(tmp_path: Path) -> None:
    images = [b"one", b"two", b"three"]
    sources = write_sources(tmp_path, images, 7, RATE_WAYS)
    assert set(sources) == {way for way in RATE_WAYS if not way.startswith("s3 ")}
    expected = [item.value for item in InMemory(images, 7).items()]
    for source in sources.values():
        values = [item.value for item in image_source(source).items()]
        assert [Path(value).read_bytes() if isinstance(value, str) else value for value in values] == expected


def test_a_build_finds_the_file_of_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given the name that the file has, which is no architecture's."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(costs, "_timed", lambda arch, what, weights_mib, command, folder: command)
    ours, _ = costs.build_costs("examples/demo/demo.json", DEMO_CHECKPOINT)
    assert f"--arch={ROOT}/examples/demo/demo.json" in ours
