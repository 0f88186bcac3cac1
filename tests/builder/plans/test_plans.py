"""Making plans with ONNX Runtime in TensorRT's place: parity, sidecars, reuse, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.errors import BuildError, MissingRequirementError, ParityError, PlanError, SettingError
from cnclip_builder.plans import script
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.bundle import MODULES, SCRIPT_NAME, finish_bundle, new_bundle
from cnclip_builder.plans.here import PlanSettings, find_plans, write_jobs_of
from cnclip_builder.plans.make import make_plan, require_usable, timing_cache_name
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import Device, PlanJob, read_jobs, read_record, sidecar_of, write_jobs
from cnclip_builder.plans.requirements import require_machine
from cnclip_builder.tensors import TOWERS, Tower

from tests.builder.plans.tensorrt_stand_in import A10, H100, Spoil, StandIn
from tests.conftest import ROOT

OPTIONS = BuildOptions()


@pytest.fixture(scope="module")
def sources(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder."""
    target = tmp_path_factory.mktemp("bundle") / "plans"
    with new_bundle(target) as folder:
        settings = PlanSettings(max_batch_size=8, context_length=52, tuned_length=40)
        jobs = write_jobs_of(tiny_artefacts, TOWERS, "fp16", "served", settings, folder)
        finish_bundle(folder, tuple(jobs.values()))
    return target


@pytest.fixture
def jobs(sources: Path) -> dict[Tower, PlanJob]:
    return {job.tower: job for job in read_jobs(sources)}  # type: ignore[misc]


@pytest.fixture
def make(sources: Path, jobs: dict[Tower, PlanJob], tmp_path: Path) -> Callable[..., Any]:
    def call(tower: Tower = "text", tensorrt: StandIn | None = None, **changes: Any) -> Any:
        job = changes.pop("job", jobs[tower])
        folder, device = changes.pop("folder", tmp_path), changes.pop("device", A10)
        options = changes.pop("options", OPTIONS)
        return make_plan(job, sources, folder, tensorrt or StandIn(), device, options)  # type: ignore[arg-type]

    return call


def test_a_plan_and_its_sidecar(make: Callable[..., Any], jobs: dict[Tower, PlanJob], tmp_path: Path) -> None:
    record = make()
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny-vit.txt.fp16.served.trt",
        "tiny-vit.txt.fp16.served.trt.json",
        "timing.nvidia-a10.sm86.trt10.13.0.35.cache",
    }
    assert read_record(tmp_path / record.plan) == record
    assert (record.tensorrt, record.device, record.opset) == ("10.13.0.35", A10, "17")
    assert record.sources == jobs["text"].sources("17")
    assert record.profiles == jobs["text"].profiles
    assert set(record.parity) == {"pytorch", "onnx"}
    assert 0 < record.parity["pytorch"]["cosine_distance"] < 1e-3


def test_batches_and_lengths_that_are_tried(make: Callable[..., Any]) -> None:
    tensorrt = StandIn()
    make("text", tensorrt)
    # Profile 0: batch 1:1:4, length 3:40:52. Profile 1: batch 1:4:8, length 3:40:52.
    assert {shape for profile, shape in tensorrt.shapes if profile == 0} == {
        (batch, length) for batch in (1, 4) for length in (3, 40, 52)
    }
    assert {shape for profile, shape in tensorrt.shapes if profile == 1} == {
        (batch, length) for batch in (1, 4, 8) for length in (3, 40, 52)
    }
    images = StandIn()
    make("image", images)
    assert {(profile, shape[0]) for profile, shape in images.shapes} == {(0, 1), (0, 4), (1, 1), (1, 4), (1, 8)}


def test_8_5_gets_the_graph_it_can_parse(make: Callable[..., Any], jobs: dict[Tower, PlanJob]) -> None:
    record = make(tensorrt=StandIn("8.5.3.1", opset="16"))
    assert record.opset == "16"
    assert "tiny-vit.txt.fp16.served.opset16.onnx" in record.sources
    record.require_made_from(jobs["text"])


def off_in_one_row(_: int, __: Any, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    features = outputs["unnorm_text_features"].copy()
    features[-1] *= np.linspace(0.5, 1.5, features.shape[1], dtype=np.float32)
    return {**outputs, "unnorm_text_features": features}


def off_at_batch_8(_: int, inputs: np.ndarray, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[::-1] if len(inputs) == 8 else value for name, value in outputs.items()}


def off_for_short_texts(_: int, inputs: np.ndarray, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: -value if inputs.shape[1] == 3 else value for name, value in outputs.items()}


def off_in_the_second_profile(number: int, _: Any, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value * np.nan if number == 1 else value for name, value in outputs.items()}


def not_of_length_1(_: int, __: Any, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**outputs, "text_features": outputs["text_features"] * np.float32(1.1)}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (off_in_one_row, "profile 0, batch 1, length 3, against pytorch, row 0"),
        (off_at_batch_8, r"profile 1, batch 8, length 40, against pytorch: row"),
        (off_for_short_texts, "length 3, against pytorch, row 0: row 0 of 1 is off by 1 - cosine = 2.00e"),
        (off_in_the_second_profile, "profile 1, batch 1, length 3"),
        (not_of_length_1, "normalised features have norms from 1.1"),
    ],
)
def test_a_wrong_plan_is_not_published(make: Callable[..., Any], tmp_path: Path, spoil: Spoil, complaint: str) -> None:
    with pytest.raises(ParityError, match=complaint):
        make(tensorrt=StandIn(spoil=spoil))
    assert [path.suffix for path in tmp_path.iterdir()] == [".cache"]


def test_a_failed_rebuild_leaves_the_old_plan(make: Callable[..., Any], tmp_path: Path) -> None:
    record = make()
    with pytest.raises(ParityError):
        make(tensorrt=StandIn("10.14", spoil=off_in_one_row))
    assert read_record(tmp_path / record.plan) == record


def test_reuse(make: Callable[..., Any]) -> None:
    tensorrt = StandIn()
    first = make(tensorrt=tensorrt)
    assert make(tensorrt=tensorrt) == first
    assert tensorrt.builds == 1


@pytest.mark.parametrize("options", [BuildOptions(512), BuildOptions(None, 5), BuildOptions(tf32=True)])
def test_other_options_are_another_plan(make: Callable[..., Any], builder_log: Any, options: BuildOptions) -> None:
    tensorrt = StandIn()
    assert make(tensorrt=tensorrt).options == OPTIONS
    assert make(tensorrt=tensorrt, options=options).options == options
    assert tensorrt.builds == 2
    assert f"was made with {OPTIONS}, wanted {options}: build it again" in builder_log.text
    make(tensorrt=tensorrt, options=options)
    assert tensorrt.builds == 2


def test_tf32_is_served_only_where_it_is_asked_for(
    make: Callable[..., Any], jobs: dict[Tower, PlanJob], tmp_path: Path
) -> None:
    """The stand-in's files are of FP16: only what the sidecars say counts here."""
    for tower in TOWERS:
        make(tower, options=BuildOptions(tf32=True))
        sidecar = sidecar_of(tmp_path / jobs[tower].plan)
        sidecar.write_text(sidecar.read_text().replace('"precision": "fp16"', '"precision": "fp32"'))
    wanted = {tower: replace(job, precision="fp32") for tower, job in jobs.items()}
    with pytest.raises(PlanError, match="was made with --tf32, so that its FP32 is TF32: build it without, or serve"):
        find_plans(wanted, [tmp_path])
    assert set(find_plans(wanted, [tmp_path], tf32=True)) == set(TOWERS)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("version", "was made by TensorRT 10.13.0.35, here is 10.14"),
        ("gpu", "was made on NVIDIA A10 .compute capability 8.6., here is NVIDIA H100"),
        ("profiles", "another profiles .batch=1:1:4,length=3:40:52; batch=1:4:8,length=3:40:52, wanted batch=1:2:3"),
        ("damage", "is not the plan that its sidecar speaks of"),
        ("no sidecar", "has no sidecar"),
        ("bad sidecar", "can't be read"),
        ("old sidecar", "of another version of this builder"),
    ],
)
def test_what_is_built_again_and_why(
    make: Callable[..., Any], jobs: dict[Tower, PlanJob], tmp_path: Path, builder_log: Any, what: str, reason: str
) -> None:
    plan = tmp_path / make().plan
    tensorrt, changes = StandIn("10.14" if what == "version" else "10.13.0.35"), {}
    if what == "gpu":
        changes["device"] = H100
    elif what == "profiles":
        changes["job"] = replace(jobs["text"], profiles=(Profile.parse("batch=1:2:3,length=3:20:52"),))
    elif what == "damage":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif what == "no sidecar":
        sidecar_of(plan).unlink()
    elif what == "bad sidecar":
        sidecar_of(plan).write_text("{}")
    elif what == "old sidecar":
        sidecar_of(plan).write_text(json.dumps({**json.loads(sidecar_of(plan).read_text()), "schema": 0}))
    make(tensorrt=tensorrt, **changes)
    assert tensorrt.builds == 1
    assert __import__("re").search(f"Not reusing tiny-vit.txt.fp16.served.trt: .*{reason}", builder_log.text)


def test_another_onnx_file_is_refused(make: Callable[..., Any], jobs: dict[Tower, PlanJob], tmp_path: Path) -> None:
    plan = tmp_path / make().plan
    require_usable(plan, jobs["text"])
    other = replace(jobs["text"], files=dict.fromkeys(jobs["text"].files, "0" * 64))
    with pytest.raises(PlanError, match="was made from another ONNX file .*opset17.onnx.*: build it again"):
        require_usable(plan, other)
    with pytest.raises(PlanError, match="another precision .fp16, wanted fp32."):
        require_usable(plan, replace(jobs["text"], precision="fp32"))
    with pytest.raises(PlanError, match="there is no plan"):
        require_usable(tmp_path / "absent.trt", jobs["text"])


def test_no_gpu(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MissingRequirementError, match="no NVIDIA GPU was found"):
        make(device=None)
    assert not list(tmp_path.iterdir())


def test_sources_that_did_not_arrive_whole(jobs: dict[Tower, PlanJob], sources: Path, tmp_path: Path) -> None:
    job = jobs["text"]
    for name in job.sources("17"):
        (tmp_path / name).write_bytes((sources / name).read_bytes())
    arguments = (tmp_path / "out", StandIn(), A10, OPTIONS)
    with pytest.raises(PlanError, match=r"probes.npz is missing: copy the whole folder"):
        make_plan(job, tmp_path, *arguments)  # type: ignore[arg-type]
    (tmp_path / job.probes).write_bytes((sources / job.probes).read_bytes()[:-9])
    with pytest.raises(PlanError, match="is not the file that was written, or was cut short"):
        make_plan(job, tmp_path, *arguments)  # type: ignore[arg-type]


def test_timing_caches_are_of_one_gpu_and_version() -> None:
    names = {timing_cache_name(version, device) for version in ("8.5", "10") for device in (A10, H100)}
    assert len(names) == 4
    assert timing_cache_name("10", Device("Tesla T4 / x", "7.5")) == "timing.tesla-t4-x.sm75.trt10.cache"


@pytest.fixture
def two_kinds(make: Callable[..., Any], tmp_path: Path) -> list[Path]:
    """Folders of plans for two kinds of GPU."""
    folders = [tmp_path / "a10", tmp_path / "h100"]
    for folder, device in zip(folders, (A10, H100), strict=True):
        for tower in TOWERS:
            make(tower, folder=folder, device=device)
    return folders


def test_plans_made_elsewhere(two_kinds: list[Path], jobs: dict[Tower, PlanJob], make: Callable[..., Any]) -> None:
    found = find_plans(jobs, two_kinds)
    assert [plan.record.device for plan in found["image"]] == [A10, H100]
    with pytest.raises(PlanError, match="several are for GPUs of compute capability 8.6"):
        find_plans(jobs, [two_kinds[0], two_kinds[0]])
    make("text", StandIn("8.6.1"), folder=two_kinds[1], device=H100)
    with pytest.raises(PlanError, match="made by TensorRT 10.13.0.35 and 8.6.1, and a tritonserver has one"):
        find_plans(jobs, two_kinds)
    (two_kinds[1] / jobs["image"].plan).unlink()
    with pytest.raises(PlanError, match="there is no plan"):
        find_plans(jobs, two_kinds)


def test_what_a_bundle_holds(sources: Path, jobs: dict[Tower, PlanJob]) -> None:
    needed = {name for job in jobs.values() for name in job.files}
    assert {path.name for path in sources.iterdir()} == {*needed, "plans.json", SCRIPT_NAME, "README.txt"}
    assert f"python3 {SCRIPT_NAME}" in (sources / "README.txt").read_text()
    with zipfile.ZipFile(sources / SCRIPT_NAME) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        ours = {name for name in names if name.startswith("cnclip_builder/")}
        assert ours == {f"cnclip_builder/{module}.py" for module in MODULES}
        assert any(name.endswith("/METADATA") for name in names)
        text = b"".join(archive.read(name) for name in ours)
    assert str(ROOT).encode() not in text


def test_a_bundle_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.trt").write_bytes(b"hours of work")
    with pytest.raises(SettingError, match="holds something already"), new_bundle(tmp_path):
        pass
    assert (tmp_path / "plan.trt").read_bytes() == b"hours of work"
    with pytest.raises(BuildError), new_bundle(tmp_path / "new"):
        raise BuildError("half-way")
    assert not (tmp_path / "new").exists()


def test_the_script_of_a_bundle(
    sources: Path,
    jobs: dict[Tower, PlanJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "load_tensorrt", StandIn)
    monkeypatch.setattr(script, "current_device", lambda: H100)
    monkeypatch.setattr(script, "require_machine", lambda *_: {"libcublasLt.so.11": "11.11.3"})
    script.main(["--sources", str(sources), "--output", str(tmp_path), "--fast"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        str(tmp_path / job.plan) for job in jobs.values()
    ]
    record = find_plans(jobs, [tmp_path])["text"][0].record
    assert (record.device, record.options) == (H100, BuildOptions(fast=True))
    assert record.libraries == {"libcublasLt.so.11": "11.11.3"}
    monkeypatch.setattr(script, "current_device", lambda: None)
    monkeypatch.setattr(script, "require_machine", require_machine)
    with pytest.raises(SystemExit) as exit_:
        script.main(["--sources", str(sources), "--output", str(tmp_path)])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no NVIDIA GPU was found")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workspace-mib", "0"], "the workspace limit is 0 MiB"),
        (["--sources", "absent"], "absent/plans.json can't be read"),
        ([], "TensorRT is not installed"),
    ],
)
def test_the_script_runs_from_its_zip_alone(sources: Path, arguments: list[str], complaint: str) -> None:
    result = subprocess.run(
        [sys.executable, "-P", str(sources / SCRIPT_NAME), *arguments]
        if sys.version_info >= (3, 11)
        else [sys.executable, str(sources / SCRIPT_NAME), *arguments],
        capture_output=True,
        text=True,
        cwd=sources,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {complaint}")
    assert "Traceback" not in result.stderr


def test_modules_of_a_bundle_import_nothing_else_of_ours() -> None:
    """They run on Python 3.8 without torch, onnx or this package's other modules."""
    import ast

    for module in MODULES:
        tree = ast.parse((ROOT / "builder" / "cnclip_builder" / f"{module}.py").read_text(), feature_version=(3, 8))
        imported = {
            name
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        ours = {
            name.removeprefix("cnclip_builder.").replace(".", "/")
            for name in imported
            if name.startswith("cnclip_builder")
        }
        assert ours <= set(MODULES)
        outside = {name.partition(".")[0] for name in imported if not name.startswith("cnclip_builder")}
        assert outside <= {*sys.stdlib_module_names, "numpy", "polygraphy", "tensorrt", "tensorrt_rtx"}


def test_jobs_that_cannot_be_read(tmp_path: Path, jobs: dict[Tower, PlanJob]) -> None:
    with pytest.raises(PlanError, match=r"plans.json can't be read"):
        read_jobs(tmp_path)
    (tmp_path / "plans.json").write_text("[" * 100_000)
    with pytest.raises(PlanError, match=r"plans.json can't be read"):
        read_jobs(tmp_path)
    write_jobs(tmp_path, tuple(jobs.values()))
    assert {job.tower: job for job in read_jobs(tmp_path)} == jobs
