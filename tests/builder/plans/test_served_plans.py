"""Configs of encoders on a GPU, read back through Triton's own protobuf: plans, accelerators, and what is refused."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.errors import BuildError, MissingRequirementError, PlanError, RepositoryError, SettingError
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.here import PlanSettings, write_jobs_of
from cnclip_builder.plans.make import make_plan
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.record import Device, PlanRecord
from cnclip_builder.preview import preview_build
from cnclip_builder.repository.render import parse_config, render_config
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.values import template_values
from cnclip_builder.tensors import TOWERS, InputSpec
from tritonclient.grpc import model_config_pb2 as pb

from tests.builder.plans.tensorrt_stand_in import A10, H100, StandIn
from tests.conftest import ROOT

GPU = ServingConfig(target="gpu", precision="fp16", context_length=52, max_batch_size=8)
TRT = replace(GPU, platform="tensorrt")
PROFILES = (Profile.parse("batch=1:1:4"), Profile.parse("batch=1:4:8"))


def record(device: Device) -> PlanRecord:
    tensor = InputSpec("pixels", "uint8", ("batch", 32, 32, 3))
    return PlanRecord("a.trt", "0", "fp16", "17", {}, PROFILES, tensor, BuildOptions(), "10.13", device, 1.0, {}, {})


FACTS = {"checkpoint_sha256": "c" * 64}


def render(serving: ServingConfig, arch: Arch, tower: str, *devices: Device) -> Any:
    kind, plans = f"{tower}-encoder", [record(device) for device in devices]
    return render_config(kind, template_values(kind, "n", arch, serving, [1], 1, FACTS, plans))[1]


def backends_parameters(config: Any) -> dict[str, str]:
    """Those that a backend reads; clients read the others."""
    told = {"preferred_batch_size", "resolution", "max_image_pixels", "decoding", "version"}
    told |= {"vocabulary_sha256", "text_lengths", *FACTS}
    return {name: config.parameters[name].string_value for name in set(config.parameters) - told}


@pytest.mark.parametrize("tower", TOWERS)
def test_plans(tiny_vit: Arch, tower: str) -> None:
    config = render(TRT, tiny_vit, tower, A10, H100)
    assert (config.backend, config.platform, config.max_batch_size) == ("tensorrt", "", 8)
    assert dict(config.cc_model_filenames) == {"8.6": "model.sm86.plan", "9.0": "model.sm90.plan"}
    assert config.default_model_filename == "model.sm86.plan"
    (group,) = config.instance_group
    assert (group.kind, list(group.profile)) == (pb.ModelInstanceGroup.KIND_GPU, ["0", "1"])
    assert config.optimization.input_pinned_memory.enable
    assert config.optimization.output_pinned_memory.enable
    assert not config.optimization.HasField("cuda")
    assert not config.optimization.HasField("execution_accelerators")
    assert list(group.gpus) == []
    # A context for each profile has room for its own shapes alone.
    assert backends_parameters(config) == {"execution_context_allocation_strategy": "ON_PROFILE_CHANGE"}


def test_one_profile_needs_no_strategy(tiny_vit: Arch) -> None:
    plan = replace(record(A10), profiles=PROFILES[1:])
    values = template_values("image-encoder", "n", tiny_vit, TRT, [1], 1, FACTS, [plan])
    config = render_config("image-encoder", values)[1]
    assert list(config.instance_group[0].profile) == ["0"]
    assert backends_parameters(config) == {}


def test_every_option_alone(tiny_vit: Arch) -> None:
    plain = render(TRT, tiny_vit, "image", A10)
    pageable = render(replace(TRT, pinned_memory=False), tiny_vit, "image", A10)
    assert not pageable.optimization.input_pinned_memory.enable
    assert not pageable.optimization.output_pinned_memory.enable
    pageable.optimization.CopyFrom(plain.optimization)
    assert pageable == plain
    graphs = render(replace(TRT, cuda_graphs=True), tiny_vit, "image", A10)
    cuda = graphs.optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == [1, 2, 4, 8]
    assert {tuple(spec.input["pixels"].dim) for spec in cuda.graph_spec} == {(32, 32, 3)}
    graphs.optimization.CopyFrom(plain.optimization)
    assert graphs == plain


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({"max_batch_size": 64}, [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]),
        ({"max_batch_size": 64, "preferred_batch_size": 3}, [1, 2, 3, 4, 6, 9, 12, 15, 18, 21, 24, 64]),
        ({"max_batch_size": 20}, [1, 2, 4, 8, 16, 20]),
        ({"max_batch_size": 3}, [1, 2, 3]),
    ],
)
def test_launches_are_recorded_of_the_batches_that_are_likely(
    tiny_vit: Arch, changes: dict[str, Any], batches: list[int]
) -> None:
    """Triton replays one for exactly its shape: so of texts, in each length that they are padded to."""
    serving = replace(TRT, cuda_graphs=True, **changes)
    specs = render(serving, tiny_vit, "image", A10).optimization.cuda.graph_spec
    assert [spec.batch_size for spec in specs] == batches
    texts = replace(
        serving, preferred_batch_size=changes.get("preferred_batch_size", min(8, changes["max_batch_size"]))
    )
    specs = render(texts, tiny_vit, "text", A10).optimization.cuda.graph_spec
    assert [(spec.batch_size, list(spec.input["text"].dim)) for spec in specs] == [
        (batch, [length]) for length in (40, 52) for batch in batches
    ]


@pytest.mark.parametrize(("serving", "devices"), [(GPU, ()), (TRT, (A10,))], ids=["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("tower", TOWERS)
def test_gpus_that_are_named_and_no_other_option(
    tiny_vit: Arch, serving: ServingConfig, devices: tuple[Device, ...], tower: str
) -> None:
    """A group that names none is made on each GPU that tritonserver sees."""
    expected = render(serving, tiny_vit, tower, *devices)
    assert list(expected.instance_group[0].gpus) == []
    expected.instance_group[0].gpus.extend([0, 2])
    assert render(replace(serving, gpus=(0, 2)), tiny_vit, tower, *devices) == expected


def test_accelerators(tiny_vit: Arch) -> None:
    assert not render(GPU, tiny_vit, "image").optimization.HasField("execution_accelerators")
    for tower, shapes in (
        ("image", ["pixels:1x32x32x3", "pixels:4x32x32x3", "pixels:8x32x32x3"]),
        ("text", ["text:1x3", "text:4x40", "text:8x52"]),
    ):
        config = render(replace(GPU, accelerator="tensorrt"), tiny_vit, tower)
        assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        parameters = dict(accelerator.parameters)
        assert accelerator.name == "tensorrt"
        assert [parameters[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")] == shapes
        assert (parameters["precision_mode"], parameters["trt_engine_cache_enable"]) == ("FP16", "1")
    for tower in TOWERS:
        config = render(replace(GPU, accelerator="cuda"), tiny_vit, tower)
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"sdpa_kernel": "3"})


def test_convolutions_are_not_searched_anew_for_each_batch(tiny_vit: Arch, tiny_resnet: Arch) -> None:
    """Only RN50 has some under ONNX Runtime on a GPU, or what its TensorRT accelerator leaves to CUDA."""

    def parameters(arch: Arch, tower: str, **changes: Any) -> dict[str, str]:
        return backends_parameters(render(replace(GPU, **changes), arch, tower))

    heuristic = {"cudnn_conv_algo_search": "1"}
    assert parameters(tiny_resnet, "image") == heuristic
    assert parameters(tiny_resnet, "image", accelerator="cuda") == heuristic
    assert parameters(tiny_resnet, "image", accelerator="tensorrt") == heuristic
    assert parameters(tiny_vit, "image", accelerator="tensorrt") == heuristic
    assert parameters(tiny_resnet, "text") == parameters(tiny_vit, "image") == parameters(tiny_vit, "text") == {}


@pytest.mark.parametrize("serving", [GPU, TRT], ids=["onnxruntime", "tensorrt"])
def test_no_first_request_waits(tiny_vit: Arch, serving: ServingConfig) -> None:
    """One row, as many as clients send and as many as there may be, of each length that texts are padded to."""
    devices = (A10,) if serving.platform == "tensorrt" else ()
    serving = replace(serving, preferred_batch_size=4)

    def warmups(tower: str, name: str) -> list[tuple[int, list[int], str]]:
        return [
            (sample.batch_size, list(sample.inputs[name].dims), sample.inputs[name].input_data_file)
            for sample in render(serving, tiny_vit, tower, *devices).model_warmup
        ]

    assert warmups("image", "pixels") == [(batch, [32, 32, 3], "pixels") for batch in (1, 4, 8)]
    assert warmups("text", "text") == [
        (batch, [length], f"text-{length}") for length in (40, 52) for batch in (1, 4, 8)
    ]


def accelerators(config: Any) -> dict[str, dict[str, str]]:
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {accelerator.name: dict(accelerator.parameters) for accelerator in found}


def test_fp32_is_no_tf32_unless_it_is_asked_for(tiny_vit: Arch) -> None:
    """ONNX Runtime's default is TF32; Triton's backend takes what stands in the cuda accelerator's parameters."""
    fp32 = replace(GPU, precision="fp32")
    assert accelerators(render(fp32, tiny_vit, "image")) == {"cuda": {"use_tf32": "0"}}
    kernels = {"sdpa_kernel": "3"}
    assert accelerators(render(replace(fp32, accelerator="cuda"), tiny_vit, "text")) == {
        "cuda": {**kernels, "use_tf32": "0"}
    }
    with_tf32 = replace(fp32, tf32=True)
    assert accelerators(render(replace(with_tf32, accelerator="cuda"), tiny_vit, "text")) == {
        "cuda": {**kernels, "use_tf32": "1"}
    }
    assert accelerators(render(with_tf32, tiny_vit, "image")) == {"cuda": {"use_tf32": "1"}}
    assert accelerators(render(GPU, tiny_vit, "image")) == {}  # FP16 products are none of TF32's
    tensorrt = accelerators(render(replace(with_tf32, accelerator="tensorrt"), tiny_vit, "image"))
    assert (list(tensorrt), tensorrt["tensorrt"]["precision_mode"]) == (["tensorrt", "cuda"], "FP32")


def test_the_stand_in_reads_the_same(tiny_vit: Arch, tiny_resnet: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.protobuf import json_format

    folder = ROOT / "server" / "cnclip_server" / "backends" / "onnxruntime"
    monkeypatch.syspath_prepend(str(folder))
    session = importlib.import_module("cnclip_ort_session")
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    config = json_format.MessageToDict(
        render(replace(GPU, precision="fp32"), tiny_vit, "image"), preserving_proto_field_name=True
    )
    (cuda, _) = session.execution_providers(config, kind="GPU", device_id=0)
    assert (cuda[0], cuda[1]["use_tf32"]) == ("CUDAExecutionProvider", "0")
    config = json_format.MessageToDict(
        render(replace(GPU, accelerator="cuda"), tiny_resnet, "image"), preserving_proto_field_name=True
    )
    (cuda, _) = session.execution_providers(config, kind="GPU", device_id=0)
    assert (cuda[1]["sdpa_kernel"], cuda[1]["cudnn_conv_algo_search"]) == ("3", "HEURISTIC")


def test_engines_of_two_checkpoints_have_two_names(tiny_vit: Arch) -> None:
    """All models share one folder of engines."""
    prefixes = set()
    for kind in ("image-encoder", "text-encoder"):
        for checkpoint in ("a" * 64, "b" * 64):
            facts = {"checkpoint_sha256": checkpoint}
            values = template_values(kind, f"n-{kind}", tiny_vit, replace(GPU, accelerator="tensorrt"), [1], 1, facts)
            prefixes.add(accelerators(render_config(kind, values)[1])["tensorrt"]["trt_engine_cache_prefix"])
    assert prefixes == {f"n-{tower}-encoder-{digit * 12}" for tower in TOWERS for digit in "ab"}


def test_a_cpus_config_has_none_of_it(tiny_vit: Arch) -> None:
    config = render(replace(GPU, target="cpu"), tiny_vit, "text")
    assert not config.HasField("optimization")
    assert not config.instance_group[0].profile


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"platform": "tensorrt", "target": "cpu"}, "TensorRT plans run on GPUs alone"),
        ({"accelerator": "cuda", "target": "cpu"}, "accelerator 'cuda' is the onnxruntime backend's on a GPU"),
        ({"accelerator": "tensorrt", "platform": "tensorrt"}, "accelerator 'tensorrt' is the onnxruntime backend's"),
        ({"cuda_graphs": True}, "CUDA graphs are the tensorrt backend's"),
        ({"tf32": True}, "TF32 is how a GPU may compute FP32: choose TARGET=gpu and PRECISION=fp32"),
        ({"tf32": True, "precision": "fp32", "target": "cpu"}, "TF32 is how a GPU may compute FP32"),
        (
            {"accelerator": "tensorrt", "precision": "fp32"},
            "computes FP32 in TF32 and has no switch for it: choose PREC",
        ),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        replace(GPU, **changes)


@pytest.fixture(scope="module")
def plans(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of plans of the tiny checkpoint for two kinds of GPU."""
    return make_plans(tiny_artefacts, tmp_path_factory.mktemp("plans"), StandIn())


@pytest.fixture(scope="module")
def newer_plans(tiny_artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same by another TensorRT."""
    return make_plans(tiny_artefacts, tmp_path_factory.mktemp("newer"), StandIn("10.14"))


def make_plans(artefacts: Artefacts, root: Path, tensorrt: StandIn) -> list[Path]:
    jobs = write_jobs_of(artefacts, TOWERS, "fp16", "served", PlanSettings(8, 52, tuned_length=40))
    folders = []
    for device in (A10, H100):
        folders.append(root / device.compute_capability)
        for job in jobs.values():
            make_plan(job, artefacts.items[0].path.parent, folders[-1], tensorrt, device, BuildOptions())  # type: ignore[arg-type]
    return folders


def request(arch: Arch, artefacts: Artefacts, folder: Path, **changes: Any) -> BuildRequest:
    made = artefacts.items[0].path.parent
    return BuildRequest(
        arch=arch,
        checkpoint="random:0",
        repository=folder / "repository",
        artefacts=made.parent,
        download_root=made.parent,
        name=made.name,
        **{"serving": TRT, **changes},
    )


def refused(wanted: BuildRequest, kind: type[BuildError], message: str) -> None:
    """By the build, and in the same words by a dry run."""
    with pytest.raises(kind, match=message) as caught:
        build_repository(wanted)
    with pytest.raises(kind) as foreseen:
        preview_build(wanted)
    assert str(foreseen.value) == str(caught.value)


def test_a_repository_of_plans_for_two_kinds_of_gpu(
    tiny_artefacts: Artefacts, tiny_vit: Arch, plans: list[Path], newer_plans: list[Path], tmp_path: Path
) -> None:
    wanted = request(tiny_vit, tiny_artefacts, tmp_path, plan_folders=tuple(plans))
    name = wanted.name
    foreseen = preview_build(wanted)
    build_repository(wanted)
    repository = tmp_path / "repository"
    for model, (action, text) in foreseen.configs.items():
        assert (action, text) == ("made", (repository / model / "config.pbtxt").read_text(encoding="utf-8"))
    assert len(foreseen.plans) == 4
    assert set(foreseen.plans.values()) == {"reused"}
    for tower in TOWERS:
        encoder = repository / f"{name}-{tower}-encoder"
        files = {path.name for path in (encoder / "1").iterdir()}
        assert files == {f"model.{kind}.plan{suffix}" for kind in ("sm86", "sm90") for suffix in ("", ".json")}
        config = parse_config((encoder / "config.pbtxt").read_text(), "x")
        assert set(config.cc_model_filenames.values()) <= files
        assert config.max_batch_size == 8
    entry = json.loads((repository / "manifest.json").read_text())["models"][name]["1"]
    assert entry["platform"] == "tensorrt"
    assert [plan["gpu"]["name"] for plan in entry["plans"]["text"]] == [A10.name, H100.name]
    assert entry["plans"]["image"][0]["profiles"] == ["batch=1:1:4", "batch=1:4:8"]
    assert entry["served_parity"]["image-encoder"]["cosine_distance"] < 1e-3
    # One config names the plans of all versions.
    refused(
        replace(wanted, version=2, plan_folders=(plans[1],)),
        RepositoryError,
        "version 1 has other image plans .model.sm86.plan for .*; now model.sm90",
    )
    refused(
        replace(wanted, version=2, serving=GPU, plan_folders=()),
        RepositoryError,
        "version 1 has platform tensorrt, and versions of a model must share it",
    )
    refused(
        replace(wanted, version=2, plan_folders=tuple(newer_plans)),
        RepositoryError,
        r"TensorRT 10\.13\.0\.35: .* version 1; TensorRT 10\.14: .* version 2.*has one",
    )
    other_name = replace(wanted, name="other", artefacts=wanted.artefacts, plan_folders=tuple(newer_plans))
    refused(other_name, RepositoryError, rf"TensorRT 10\.13\.0\.35: {name} version 1; TensorRT 10\.14: other version 1")
    build_repository(replace(wanted, version=2))
    assert sorted(path.name for path in (repository / f"{name}-image-encoder").iterdir()) == [
        "1",
        "2",
        "config.pbtxt",
        "warmup",
    ]


def test_plans_of_another_making_are_refused(
    tiny_artefacts: Artefacts, tiny_vit: Arch, plans: list[Path], tmp_path: Path
) -> None:
    wanted = request(tiny_vit, tiny_artefacts, tmp_path, plan_folders=(plans[0],))
    refused(replace(wanted, serving=replace(TRT, max_batch_size=16)), PlanError, "was made from another profiles")
    refused(
        replace(wanted, serving=replace(TRT, precision="fp32")),
        PlanError,
        "there is no plan .*tiny-vit.img.fp32.served.trt",
    )
    assert not (tmp_path / "repository").exists()


def test_settings_that_do_not_fit_are_refused_before_the_export(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path
) -> None:
    wanted = request(tiny_vit, tiny_artefacts, tmp_path)
    small = PlanSettings(8, 52, image_profiles=(Profile.parse("batch=1:2:4"),))
    refused(
        replace(wanted, plan_settings=small),
        SettingError,
        "batches of up to 8 are served, but the image profiles take 4 at most",
    )
    short = PlanSettings(8, 52, text_profiles=(Profile.parse("batch=1:2:8,length=3:4:40"),))
    refused(replace(wanted, plan_settings=short), SettingError, "no profile takes texts of 3 to 52 tokens")


def test_a_machine_without_gpu_or_tensorrt_is_told_the_way_round(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnclip_builder.plans.here.missing_gpu", lambda: "nvidia-smi lists none")
    with pytest.raises(MissingRequirementError) as caught:
        build_repository(request(tiny_vit, tiny_artefacts, tmp_path))
    message = str(caught.value)
    assert "lacks an NVIDIA GPU with its driver (nvidia-smi lists none)" in message
    for command in (
        f"cnclip-build tensorrt --arch {tiny_vit.option} --checkpoint random:0 --bundle plans",
        "python3 /plans/build_plans.pyz",
        f"cnclip-build repository --arch {tiny_vit.option} --checkpoint random:0 --platform tensorrt --target gpu "
        "--plans plans",
    ):
        assert command in message
    assert "\n" not in message
