"""What is asked of TensorRT's versions, each stood in for by a module with the real one's attributes."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import polygraphy.backend.trt as polygraphy
import pytest
from cnclip_builder.errors import MissingRequirementError, PlanError, SettingError
from cnclip_builder.plans.api import BuildOptions, TensorRT, load_tensorrt
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.plans.progress import Complaints
from cnclip_builder.tensors import InputSpec
from polygraphy.exception import PolygraphyException

from tests.builder.plans.tensorrt_versions import VERSIONS, make_module

IDS = InputSpec("text", "int32", ("batch", "length"))
CONFIG_ARGUMENTS = {
    name
    for kind in polygraphy.CreateConfig.__mro__
    if kind is not object
    for name in inspect.signature(kind.__init__).parameters
}
PROFILES = [Profile.parse("batch=1:1:4,length=3:16:52"), Profile.parse("batch=1:32:64,length=3:26:52")]


class Layer:
    def __init__(self, name: str, kind: Any) -> None:
        self.name, self.type, self.num_outputs = name, kind, 1
        self.precision: Any = None
        self.output_types: dict[int, Any] = {}

    def set_output_type(self, index: int, kind: Any) -> None:
        self.output_types[index] = kind


class Calls:
    """Stands in for Polygraphy's loaders, and keeps what they were called with."""

    def __init__(self, module: Any, input_name: str = "text", input_type: str = "INT32") -> None:
        kinds = module.LayerType
        self.layers = [
            Layer("fp32_node_layer_norm_variance", kinds.REDUCE),
            Layer("fp32_node_layer_norm_variance_1", kinds.ELEMENTWISE),
            Layer("fp32_node_layer_norm_source", kinds.IDENTITY),
            Layer("node_matmul", kinds.ELEMENTWISE),
        ]
        tensor = SimpleNamespace(name=input_name, dtype=module.DataType[input_type])
        self.network = SimpleNamespace(
            num_inputs=1, get_input=[tensor].__getitem__, num_layers=4, get_layer=self.layers.__getitem__
        )
        self.strongly_typed: bool | None = None
        self.config: dict[str, Any] = {}
        self.saved: str | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def parse(path: str, strongly_typed: bool) -> tuple[Any, Any, Any]:
            self.strongly_typed = strongly_typed
            return None, self.network, None

        def configure(**settings: Any) -> str:
            assert set(settings) <= CONFIG_ARGUMENTS, "Polygraphy's own CreateConfig takes no such argument"
            self.config = settings
            return "config"

        def build(network: Any, config: Any, save_timing_cache: str) -> bytes:
            assert (network[1], config) == (self.network, "config")
            self.saved = save_timing_cache
            return b"plan"

        monkeypatch.setattr(polygraphy, "network_from_onnx_path", parse)
        monkeypatch.setattr(polygraphy, "CreateConfig", configure)
        monkeypatch.setattr(polygraphy, "engine_bytes_from_network", build)


def build(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changes: Any) -> Calls:
    module = make_module(version)
    calls = Calls(module, **{key: changes.pop(key) for key in ("input_name", "input_type") if key in changes})
    calls.install(monkeypatch)
    precision = changes.pop("precision", "fp16")
    options = BuildOptions(**changes)
    plan = TensorRT(module).build(tmp_path / "a.onnx", IDS, PROFILES, precision, options, tmp_path / "cache")
    assert plan == b"plan"
    return calls


@pytest.mark.parametrize(
    ("version", "opset", "strongly_typed"),
    [("8.5.3.1", "16", False), ("8.6.1", "17", False), ("10.13.0.35", "17", True), ("11.4.0.106", "17", True)],
)
def test_features_are_seen_by_attribute(version: str, opset: str, strongly_typed: bool) -> None:
    module = make_module(version)
    module.__version__ = "unheard-of"
    tensorrt = TensorRT(module)
    assert (tensorrt.version, tensorrt.opset, tensorrt.strongly_typed) == ("unheard-of", opset, strongly_typed)


@pytest.mark.parametrize("version", VERSIONS)
def test_fp32_is_no_tf32_unless_it_is_asked_for(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT's default is TF32; Polygraphy clears the flag for False."""
    assert build(version, monkeypatch, tmp_path, precision="fp32").config["tf32"] is False
    assert build(version, monkeypatch, tmp_path, precision="fp32", tf32=True).config["tf32"] is True


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_precision_is_the_onnx_files_and_8_gets_the_flag_besides(
    version: str, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = build(version, monkeypatch, tmp_path, precision=precision)
    typed = version.startswith(("10", "11"))
    assert calls.strongly_typed is typed
    held = [(layer.name, layer.precision.name) for layer in calls.layers if layer.precision]
    if typed or precision == "fp32":
        assert {"fp16", "precision_constraints"}.isdisjoint(calls.config)
        assert held == []
    else:
        assert (calls.config["fp16"], calls.config["precision_constraints"]) == (True, "obey")
        assert held == [
            ("fp32_node_layer_norm_variance", "FLOAT"),
            ("fp32_node_layer_norm_variance_1", "FLOAT"),
        ]
        assert calls.layers[0].output_types[0].name == "FLOAT"


@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_come_from_tensorrt_and_from_cublas_where_it_is_needed_anyway(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needed = ["CUBLAS", "CUBLAS_LT"] if version == "8.5.3.1" else []
    assert TensorRT(make_module(version)).needs_cublas is bool(needed)
    sources = build(version, monkeypatch, tmp_path).config["tactic_sources"]
    assert [source.name for source in sources] == [*needed, "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]


def test_a_fast_build_is_at_a_low_level_where_there_are_levels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build("10.13.0.35", monkeypatch, tmp_path, fast=True).config["builder_optimization_level"] == 1
    given = build("10.13.0.35", monkeypatch, tmp_path, fast=True, optimization_level=4)
    assert given.config["builder_optimization_level"] == 4
    assert "builder_optimization_level" not in build("8.5.3.1", monkeypatch, tmp_path, fast=True).config


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_is_asked_for_where_tensorrt_tells_it(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monitor = build(version, monkeypatch, tmp_path).config["progress_monitor"]
    assert (monitor is not None) is version.startswith(("10", "11"))


@pytest.mark.parametrize("version", VERSIONS)
def test_profiles_and_workspace(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = build(version, monkeypatch, tmp_path, workspace_mib=512).config
    assert [(p["text"].min, p["text"].opt, p["text"].max) for p in config["profiles"]] == [
        ((1, 3), (1, 16), (4, 52)),
        ((1, 3), (32, 26), (64, 52)),
    ]
    assert [(pool.name, size) for pool, size in config["memory_pool_limits"].items()] == [("WORKSPACE", 512 * 2**20)]
    assert "memory_pool_limits" not in build(version, monkeypatch, tmp_path).config


def test_optimization_levels_came_with_8_6(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build("8.6.1", monkeypatch, tmp_path, optimization_level=5).config["builder_optimization_level"] == 5
    with pytest.raises(SettingError, match="TensorRT 8.5.3.1 has no optimization levels: leave --optimization-level"):
        build("8.5.3.1", monkeypatch, tmp_path, optimization_level=5)


def test_the_timing_cache_is_written_and_then_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = build("10.13.0.35", monkeypatch, tmp_path)
    assert (calls.config["load_timing_cache"], calls.saved) == (None, str(tmp_path / "cache"))
    (tmp_path / "cache").write_bytes(b"measured")
    assert build("10.13.0.35", monkeypatch, tmp_path).config["load_timing_cache"] == str(tmp_path / "cache")


def test_ids_that_arrive_as_int64_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT 10 and later have INT64, which Chinese-CLIP's own ONNX files ask for, with wrong features."""
    with pytest.raises(PlanError, match=r"input 'text' arrives in TensorRT as DataType.INT64, not DataType.INT32"):
        build("10.13.0.35", monkeypatch, tmp_path, input_type="INT64")


def test_another_input_is_refused_by_naming_the_real_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a.onnx has inputs 'image', not 'text'"):
        build("8.6.1", monkeypatch, tmp_path, input_name="image")


def test_what_tensorrt_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = make_module("11.4.0.106")
    Calls(module).install(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise PolygraphyException("Could not parse ONNX correctly\nand more")

    monkeypatch.setattr(polygraphy, "network_from_onnx_path", refuse)
    with pytest.raises(PlanError, match=r"^TensorRT 11.4.0.106 can't build a.onnx: Could not parse ONNX correctly \("):
        TensorRT(module).build(tmp_path / "a.onnx", IDS, PROFILES, "fp16", BuildOptions(), tmp_path / "cache")


def test_tensorrts_own_first_error_is_what_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As 8.5.3 logged it on an H200 that had no cuBLASLt, and as Polygraphy ends such a build."""
    module = make_module("8.5.3.1")
    Calls(module).install(monkeypatch)
    log = logging.getLogger("Polygraphy")

    def refuse(*_: object, **__: object) -> None:
        log.warning("[W]     Some other warning")
        log.warning("[W]     Skipping tactic 0x00 due to exception cuBLASLt error 1 querying major version.")
        log.error("[E]     10: Could not find any implementation for node {ForeignNode[a...b]}.\n")
        log.error("[E]     2: Assertion engine != nullptr failed.")
        raise PolygraphyException("Invalid Engine. Please ensure the engine was built correctly")

    monkeypatch.setattr(polygraphy, "engine_bytes_from_network", refuse)
    with pytest.raises(PlanError) as caught:
        TensorRT(module).build(tmp_path / "a.onnx", IDS, PROFILES, "fp16", BuildOptions(), tmp_path / "cache")
    assert str(caught.value).startswith(
        "TensorRT 8.5.3.1 can't build a.onnx: 10: Could not find any implementation for node {ForeignNode[a...b]}.; "
        "before that: Skipping tactic 0x00 due to exception cuBLASLt error 1 querying major version. ("
    )
    assert not any(isinstance(handler, Complaints) for handler in log.handlers)


def test_a_builder_that_does_not_start_is_told_with_tensorrts_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module("10.13.0.35")

    def start(_: object) -> None:
        logging.getLogger("Polygraphy").error("[E] CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Builder = start
    monkeypatch.setattr(polygraphy, "get_trt_logger", lambda: None)
    with pytest.raises(MissingRequirementError, match=r"10.13.0.35 does not start here: CUDA .* error: 35.; install"):
        TensorRT(module).require_builder()


@pytest.mark.parametrize("options", [{"workspace_mib": 0}, {"optimization_level": 6}, {"optimization_level": -1}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="choose"):
        BuildOptions(**options)


def test_a_tensorrt_before_8_5_is_refused() -> None:
    module = make_module("8.5.3.1")
    module.DataType = SimpleNamespace(FLOAT=1)
    with pytest.raises(MissingRequirementError, match="takes no uint8 tensors: install 8.5 or later"):
        TensorRT(module)


def test_without_tensorrt_or_polygraphy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingRequirementError, match="TensorRT is not installed"):
        load_tensorrt()
    monkeypatch.setitem(__import__("sys").modules, "polygraphy.config", None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'cn-clip-triton\[tensorrt\]'"):
        load_tensorrt()


class OnDevice:
    """Stands in for Polygraphy's array on a GPU."""

    there: ClassVar[list[OnDevice]] = []

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype, self.copied = shape, dtype, None
        OnDevice.there.append(self)

    def __enter__(self) -> OnDevice:
        return self

    def __exit__(self, *_: object) -> None:
        OnDevice.there.remove(self)

    def copy_from(self, array: Any) -> None:
        self.copied = array


def test_a_plan_is_timed_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is laid on the GPU is given back with the plan; nothing but the plan is between two times."""
    module = make_module("10.13.0.35")
    module.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    asked: list[Any] = []

    class Runner:
        def __init__(self, engine: Any) -> None:
            assert engine is known

        def __enter__(self) -> Runner:
            return self

        def __exit__(self, *_: object) -> None:
            asked.append("closed")

        def set_profile(self, number: int) -> None:
            asked.append(number)

        def infer(self, feed: dict[str, Any], **options: Any) -> None:
            asked.append((feed, options))

    names = ["features", "text"]
    known = SimpleNamespace(
        num_io_tensors=2, get_tensor_name=names.__getitem__, get_tensor_mode={"features": "out", "text": "in"}.get
    )
    monkeypatch.setattr(polygraphy, "engine_from_bytes", lambda plan: known)
    monkeypatch.setattr(polygraphy, "TrtRunner", Runner)
    monkeypatch.setattr("polygraphy.cuda.DeviceArray", OnDevice)
    ids = np.zeros((2, 24), np.int32)
    with TensorRT(module).open_on_device(b"plan") as lay:
        run = lay(1, ids)
        (array,) = OnDevice.there
        assert (array.shape, array.dtype.name, array.copied is ids) == ((2, 24), "int32", True)
        run()
        run()
    assert asked == [1, *[({"text": array}, {"check_inputs": False, "copy_outputs_to_host": False})] * 2, "closed"]
    assert OnDevice.there == []
