"""Load, settings in configs, and the search for better ones; on a server whose rate is known, and on the demo model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cnclip_bench._cli import app
from cnclip_bench.load import Sustained, measure_levels, run_load
from cnclip_bench.serving_settings import Settings, copy_ensemble, read_settings, remember_settings, write_settings
from cnclip_bench.subject import read_config
from cnclip_bench.tuning import Comparison, Goal, Served, coordinates, tune
from typer.testing import CliRunner

from tests.conftest import ROOT

START = Settings(16, 1, 0, 1000, None, 1)

CONFIGS = {
    "m-text": 'name: "m-text"\nplatform: "ensemble"\nmax_batch_size: 16  # of all\n',
    "m-text-encoder": """
name: "m-text-encoder"
# max_batch_size: 99 was too much
max_batch_size: 16
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 1000 }
parameters { key: "intra_op_thread_count" value { string_value: "0" } }
""",
    "m-text-tokenize": 'name: "m-text-tokenize"\nmax_batch_size: 16\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n',
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for model, text in CONFIGS.items():
        (tmp_path / "repository" / model / "1").mkdir(parents=True)
        (tmp_path / "repository" / model / "config.pbtxt").write_text(text)
    return tmp_path / "repository"


class Sleeps:
    """Requests that take so long, or longer on a busy machine: how long they took is known."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.took_s: list[float] = []

    def __call__(self) -> None:
        began = time.perf_counter()
        time.sleep(self.seconds)
        self.took_s.append(time.perf_counter() - began)

    def a_second(self, concurrency: int) -> float:
        return concurrency * len(self.took_s) / sum(self.took_s)


def test_a_load_is_kept_up() -> None:
    sleep = Sleeps(0.02)
    sustained = run_load(sleep, 3, 0.3)
    assert sustained.items_per_s == pytest.approx(sleep.a_second(3), rel=0.2)
    assert sorted(sustained.waits_s)[0] >= 0.02
    sleep = Sleeps(0.1)
    slow = run_load(sleep, 2, 0.01, items=8)  # two that count, however short the time
    assert len(slow.waits_s) >= 4
    assert slow.items_per_s == pytest.approx(8 * sleep.a_second(2), rel=0.2)


def test_a_failed_request_ends_the_load() -> None:
    def fail() -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        run_load(fail, 2, 5)


def test_levels() -> None:
    sleeps = {size: Sleeps(0.01 * size) for size in (1, 2)}
    one, two = measure_levels(sleeps.__getitem__, [(1, 1), (2, 2)], 0.1, 2)
    assert (one.concurrency, one.batch_size, len(two.rounds_items_per_s)) == (1, 1, 2)
    assert two.items_per_s == pytest.approx(2 * sleeps[2].a_second(2), rel=0.25)
    assert two.latency.min_ms >= 20
    assert two.items_per_s == pytest.approx(sum(two.rounds_items_per_s) / 2)  # of two the median, and not the better


def test_settings_are_changed_and_nothing_else(repository: Path) -> None:
    assert read_settings(repository, "m", "text") == START
    wanted = Settings(32, 2, 1, 0, None, 4)
    write_settings(repository, "m", "text", wanted)
    assert read_settings(repository, "m", "text") == wanted
    encoder = (repository / "m-text-encoder/config.pbtxt").read_text()
    assert "# max_batch_size: 99 was too much\nmax_batch_size: 32\n" in encoder
    assert (repository / "m-text/config.pbtxt").read_text().endswith("max_batch_size: 32  # of all\n")
    write_settings(repository, "m", "text", START)
    assert {model: (repository / model / "config.pbtxt").read_text() for model in CONFIGS} == CONFIGS


def test_no_batch_that_warms_up_is_larger_than_the_largest(repository: Path) -> None:
    file = repository / "m-text-encoder/config.pbtxt"
    warmups = "".join(f'model_warmup [ {{ name: "{rows} rows" batch_size: {rows} }} ]\n' for rows in (1, 8, 16))
    file.write_text(file.read_text() + warmups + "# batch_size: 16 is the last\n")
    write_settings(repository, "m", "text", replace(START, max_batch_size=4))
    assert [sample.batch_size for sample in read_config(file.parent).model_warmup] == [1, 4, 4]
    assert "# batch_size: 16 is the last\n" in file.read_text()


def test_what_cannot_be_changed_changes_nothing(repository: Path) -> None:
    (repository / "m-text-encoder/config.pbtxt").write_text(
        CONFIGS["m-text-encoder"].replace("dynamic_batching { max_queue_delay_microseconds: 1000 }\n", "")
    )
    before = {model: (repository / model / "config.pbtxt").read_text() for model in CONFIGS}
    start = read_settings(repository, "m", "text")
    assert start.encoder_queue_delay_microseconds == 0
    with pytest.raises(ValueError, match=r"m-text-encoder/config.pbtxt is not laid out .* by hand: .*delay 5000"):
        write_settings(repository, "m", "text", replace(start, max_batch_size=8, encoder_queue_delay_microseconds=5000))
    assert {model: (repository / model / "config.pbtxt").read_text() for model in CONFIGS} == before


def test_a_copy_has_configs_of_its_own(repository: Path, tmp_path: Path) -> None:
    copy_ensemble(repository, "m", "text", tmp_path / "copy")
    write_settings(tmp_path / "copy", "m", "text", replace(START, max_batch_size=8))
    assert read_settings(repository, "m", "text") == START
    assert (tmp_path / "copy/m-text-encoder/1").resolve() == repository / "m-text-encoder/1"


def test_a_preferred_size_is_what_encoder_and_clients_keep_to(repository: Path) -> None:
    encoder, ensemble = (repository / model / "config.pbtxt" for model in ("m-text-encoder", "m-text"))
    encoder.write_text(
        encoder.read_text().replace("dynamic_batching {", "dynamic_batching { preferred_batch_size: [ 4 ]")
    )
    with pytest.raises(ValueError, match=r"m-text/config.pbtxt is not laid out .* by hand: .*asked 2"):
        write_settings(repository, "m", "text", replace(START, preferred_batch_size=2))
    parameter = 'parameters { key: "preferred_batch_size" value { string_value: "4" } }\n'
    ensemble.write_text(ensemble.read_text() + parameter)
    start = read_settings(repository, "m", "text")
    assert start == replace(START, preferred_batch_size=4)
    write_settings(repository, "m", "text", replace(start, preferred_batch_size=2))
    assert read_settings(repository, "m", "text").preferred_batch_size == 2
    assert ensemble.read_text().endswith(parameter.replace("4", "2"))
    assert [values["preferred_batch_size"] for values in coordinates(start, 2)[1]] == [1, 2, 4, 8, 16]


def test_instances_share_the_cores() -> None:
    assert coordinates(START, 4)[0] == [
        {"encoder_instances": 1, "encoder_threads": 0},
        {"encoder_instances": 2, "encoder_threads": 2},
        {"encoder_instances": 4, "encoder_threads": 1},
    ]
    assert coordinates(replace(START, encoder_threads=None), 4)[0][-1] == {"encoder_instances": 4}
    assert coordinates(START, 4)[3] == [{"preparation_instances": count} for count in (1, 2, 4)]
    assert coordinates(replace(START, preparation_threads=0), 4)[3] == [
        *({"preparation_instances": count, "preparation_threads": 0} for count in (1, 2, 4)),
        *({"preparation_instances": 1, "preparation_threads": count} for count in (1, 2)),
    ]
    assert [values["max_batch_size"] for values in coordinates(START, 4)[1]] == [4, 8, 16, 32, 64]


class Simulated:
    """Servers whose rates are known; each round is slower or faster as a whole, as machines are."""

    def __init__(self) -> None:
        self.open: list[Settings] = []
        self.most = 0

    @contextmanager
    def __call__(self, settings: Settings) -> Iterator[Served]:
        if settings.preparation_instances > 1:
            raise RuntimeError("no memory for it")
        self.open.append(settings)
        self.most = max(self.most, len(self.open))
        noise = iter(1 + 0.005 * (number * 7 % 5 - 2) for number in range(100))
        rate = 100.0 * (1.3 if settings.encoder_instances == 2 else 1) * (1 + 0.1 * (settings.max_batch_size == 32))
        yield lambda: Sustained(rate * next(noise), [0.01 * settings.max_batch_size] * 4)
        self.open.remove(settings)


def test_the_best_is_found_and_confirmed() -> None:
    server, reports = Simulated(), list[tuple[Comparison, bool]]()
    found = tune(server, START, coordinates(START, 2), Goal(0.03), 5, lambda trial, won: reports.append((trial, won)))
    assert found.best == replace(START, encoder_instances=2, encoder_threads=1, max_batch_size=32)
    assert found.confirmation is not None
    assert found.confirmation.gain == pytest.approx(0.43, abs=0.02)
    assert [trial.problem for trial in found.trials if trial.problem] == ["no memory for it"]
    assert sum(won for _, won in reports) == 2
    assert (server.open, server.most) == ([], 2)
    # 64 is no better than 16 and is dropped early; the winner had all rounds.
    assert len(next(t for t in found.trials if t.settings.max_batch_size == 64).ratios) == 3


def test_a_bound_of_latency() -> None:
    found = tune(Simulated(), START, coordinates(START, 2), Goal(0.03, max_latency_ms=200), 5, lambda *_: None)
    assert found.best == replace(START, encoder_instances=2, encoder_threads=1)


def test_noise_is_no_gain() -> None:
    goal = Goal(0.03)
    assert not Comparison(START, (0.7, 1.6, 0.8, 1.5, 1.0)).wins(goal)
    assert Comparison(START, (1.05, 1.06, 1.04)).wins(goal)
    assert not Comparison(START, (1.01, 1.011, 1.012)).wins(goal)
    assert not Comparison(START, problem="no memory").wins(goal)


@pytest.mark.triton
def test_tune_on_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_bench.tuning.coordinates", lambda *_: [[{"max_batch_size": 8}, {"max_batch_size": 4}]])
    demo = [str(ROOT / "examples/demo") + name for name in ("/demo.json", "/clip_cn_demo.pt")]
    command = [
        "tune",
        "--arch",
        demo[0],
        "--checkpoint",
        demo[1],
        "--tower",
        "text",
        "--seconds",
        "0.1",
        "--batch-size",
        "8",
    ]
    result = CliRunner().invoke(app, [*command, "--rounds", "3", "--min-gain", "9"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "max_batch_size=4: requests have 8 items" in result.output
    assert "nothing is surely better" in result.output
    assert read_settings(folder / "build/bench/repository", "demo", "text").max_batch_size == 32
    figures = json.loads((folder / "build/benchmarks/tune-text.json").read_text())["figures"]
    assert len(figures["trials"][0]["ratios"]) == 3


def test_processes_that_decode_have_threads(repository: Path) -> None:
    for model, text in CONFIGS.items():
        image = "m-image-preprocess" if model.endswith("tokenize") else model.replace("text", "image")
        more = 'parameters { key: "threads" value { string_value: "0" } }  # shared\n' if "preprocess" in image else ""
        (repository / image / "1").mkdir(parents=True)
        (repository / image / "config.pbtxt").write_text(text.replace(model, image) + more)
    start = read_settings(repository, "m", "image")
    assert start == replace(START, preparation_threads=0)
    write_settings(repository, "m", "image", replace(start, preparation_instances=2, preparation_threads=3))
    assert read_settings(repository, "m", "image") == replace(start, preparation_instances=2, preparation_threads=3)
    assert read_settings(repository, "m", "text") == START


def test_what_is_found_is_remembered_for_the_next_build(repository: Path) -> None:
    from cnclip_builder.repository.manifest import load_manifest, write_manifest

    write_manifest(repository, {"m": {"1": {"serving": {"encoder_threads": 0, "tokenize_instances": 1}}}})
    changes = replace(START, encoder_threads=2, preparation_instances=3).changes_from(START)
    remember_settings(repository, "m", "text", changes)
    remember_settings(repository, "m", "image", {"preferred_batch_size": 2, "preparation_threads": 4})
    assert load_manifest(repository).models["m"]["1"]["serving"] == {
        "encoder_threads": {"image": 0, "text": 2},
        "tokenize_instances": 3,
        "preferred_batch_size": {"image": 2},
        "merged_batch_size": {"image": 2},
        "preprocess_threads": 4,
    }
