"""Which ONNX Runtime session the stand-in opens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

LEVEL = ort.GraphOptimizationLevel


@pytest.fixture
def sessions(stand_in: ModuleType) -> Any:
    return stand_in.sessions


@pytest.fixture
def load_error(stand_in: ModuleType) -> type[Exception]:
    error: type[Exception] = stand_in.checks.LoadError
    return error


def config(**parameters: str) -> dict[str, Any]:
    return {"name": "m", "parameters": {name: {"string_value": value} for name, value in parameters.items()}}


def test_defaults(sessions: Any) -> None:
    options = sessions.session_options({"name": "m"})
    assert options.intra_op_num_threads == 0
    assert options.inter_op_num_threads == 0
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == LEVEL.ORT_ENABLE_ALL
    assert options.enable_cpu_mem_arena
    assert options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("intra_op_thread_count", "3", "intra_op_num_threads", 3),
        ("intra_op_thread_count", "-1", "intra_op_num_threads", 0),
        ("inter_op_thread_count", "2", "inter_op_num_threads", 2),
        ("execution_mode", "1", "execution_mode", ort.ExecutionMode.ORT_PARALLEL),
        ("enable_mem_arena", "false", "enable_cpu_mem_arena", False),
        ("enable_mem_pattern", "0", "enable_mem_pattern", False),
    ],
)
def test_each_parameter_alone(sessions: Any, name: str, value: str, attribute: str, expected: Any) -> None:
    assert getattr(sessions.session_options(config(**{name: value})), attribute) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (-1, LEVEL.ORT_ENABLE_BASIC),
        (0, LEVEL.ORT_ENABLE_ALL),
        (1, LEVEL.ORT_ENABLE_EXTENDED),
        (2, LEVEL.ORT_DISABLE_ALL),
    ],
)
def test_graph_level(sessions: Any, level: int, expected: Any) -> None:
    options = sessions.session_options({"name": "m", "optimization": {"graph": {"level": level}}})
    assert options.graph_optimization_level == expected


def test_options_of_the_session_itself(sessions: Any, nets: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(nets.identity(), path)
    made = {**config(intra_op_thread_count="1"), "optimization": {"graph": {"level": 2}}}
    used = sessions.open_session(made, path, kind="CPU", device_id=0).get_session_options()
    assert used.intra_op_num_threads == 1
    assert used.graph_optimization_level == LEVEL.ORT_DISABLE_ALL


def test_entries_by_name(sessions: Any) -> None:
    name = "session.use_device_allocator_for_initializers"
    assert sessions.session_options(config(**{name: "1"})).get_session_config_entry(name) == "1"
    name = "memory.enable_memory_arena_shrinkage"
    assert sessions.run_options(config(**{name: "cpu:0"})).get_run_config_entry(name) == "cpu:0"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("execution_mode", "2", "execution_mode are 0 or 1 but got 2"),
        ("intra_op_thread_count", "many", "'intra_op_thread_count' has the value 'many'; write a whole number"),
        ("enable_mem_arena", "yes", "'enable_mem_arena' has the value 'yes'; write true or false"),
    ],
)
def test_parameters_without_meaning(
    sessions: Any, load_error: type[Exception], name: str, value: str, message: str
) -> None:
    with pytest.raises(load_error, match=message):
        sessions.session_options(config(**{name: value}))


def test_shared_sessions(sessions: Any) -> None:
    assert sessions.shares_session(config(share_session_between_instances="true"))
    assert not sessions.shares_session(config())


def _accelerators(side: str, *entries: dict[str, Any]) -> dict[str, Any]:
    return {"name": "m", "optimization": {"execution_accelerators": {f"{side}_execution_accelerator": list(entries)}}}


def test_cpu_needs_nothing(sessions: Any) -> None:
    assert sessions.execution_providers({"name": "m"}, kind="CPU", device_id=0) == [("CPUExecutionProvider", {})]


def test_gpu_accelerators_do_not_concern_cpu_instances(sessions: Any) -> None:
    made = _accelerators("gpu", {"name": "tensorrt"})
    assert sessions.execution_providers(made, kind="CPU", device_id=0) == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize(
    ("made", "kind", "provider"),
    [
        ({"name": "m"}, "GPU", "CUDAExecutionProvider"),
        (_accelerators("gpu", {"name": "tensorrt"}), "GPU", "TensorrtExecutionProvider"),
        (_accelerators("cpu", {"name": "openvino"}), "CPU", "OpenVINOExecutionProvider"),
    ],
)
def test_missing_providers(
    sessions: Any,
    load_error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    made: dict[str, Any],
    kind: str,
    provider: str,
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(load_error, match=f"needs {provider}.*has only CPUExecutionProvider; ask for KIND_CPU"):
        sessions.execution_providers(made, kind=kind, device_id=0)


@pytest.mark.parametrize(("side", "kind"), [("gpu", "GPU"), ("cpu", "CPU")])
def test_unknown_accelerators(sessions: Any, load_error: type[Exception], side: str, kind: str) -> None:
    with pytest.raises(load_error, match="unknown Execution Accelerator 'abacus' is requested; known here"):
        sessions.execution_providers(_accelerators(side, {"name": "abacus"}), kind=kind, device_id=0)


def test_gpu_options(sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the providers; that they take it needs a GPU, and is not tested here."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    made = _accelerators(
        "gpu",
        {
            "name": "tensorrt",
            "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": "9", "trt_engine_cache_enable": "1"},
        },
        {"name": "cuda", "parameters": {"enable_cuda_graph": "1"}},
    )
    made.update(config(cudnn_conv_algo_search="1", gpu_mem_limit="1000", arena_extend_strategy="1"))
    providers = sessions.execution_providers(made, kind="GPU", device_id=1)
    assert [name for name, _ in providers] == names
    assert providers[0][1] == {
        "device_id": "1",
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "9",
        "trt_engine_cache_enable": "1",
    }
    assert providers[1][1] == {
        "device_id": "1",
        "use_tf32": "0",
        "enable_cuda_graph": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "1",
        "gpu_mem_limit": "1000",
    }


@pytest.mark.parametrize(("written", "handed_on"), [(None, "0"), ("0", "0"), ("1", "1"), ("true", "1"), ("off", "0")])
def test_fp32_is_tf32_only_where_it_is_asked_for(
    sessions: Any, monkeypatch: pytest.MonkeyPatch, written: str | None, handed_on: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    parameters = {} if written is None else {"parameters": {"use_tf32": written}}
    made = _accelerators("gpu", {"name": "cuda", **parameters})
    for one in (made, *([{"name": "m"}] if written is None else [])):
        assert sessions.execution_providers(one, kind="GPU", device_id=0)[0][1]["use_tf32"] == handed_on


def test_cuda_parameters_without_meaning(
    sessions: Any, load_error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    made = _accelerators("gpu", {"name": "cuda", "parameters": {"use_tf32": "perhaps"}})
    with pytest.raises(load_error, match="'use_tf32' of the accelerator cuda has the value 'perhaps'; write 0 or 1"):
        sessions.execution_providers(made, kind="GPU", device_id=0)


@pytest.mark.parametrize(
    ("accelerators", "got", "lacks"),
    [
        ((), ["CPUExecutionProvider"], "CUDAExecutionProvider"),
        (("tensorrt",), ["CUDAExecutionProvider", "CPUExecutionProvider"], "TensorrtExecutionProvider"),
        (("tensorrt",), ["CPUExecutionProvider"], "TensorrtExecutionProvider"),
    ],
)
def test_a_gpu_model_that_would_run_on_the_cpu_is_not_served(
    sessions: Any,
    load_error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    accelerators: tuple[str, ...],
    got: list[str],
    lacks: str,
) -> None:
    """ONNX Runtime opens a session all the same when a provider's libraries cannot be loaded."""

    class Session:
        def __init__(self, *_: Any, **options: Any) -> None:
            assert next(name for name, _ in options["providers"]) == lacks

        def get_providers(self) -> list[str]:
            return got

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    made = _accelerators("gpu", *({"name": name} for name in accelerators))
    with pytest.raises(load_error, match=f"model 'm': it asks for {lacks}, .*could not start .*would run on") as raised:
        sessions.open_session(made, tmp_path / "model.onnx", kind="GPU", device_id=0)
    message = str(raised.value)
    assert "\n" not in message
    assert "cannot open shared object file" in message  # the onnxruntime of these tests has no such library
    got[:] = names
    assert sessions.open_session(made, tmp_path / "model.onnx", kind="GPU", device_id=0)


def test_an_onnxruntime_that_falls_back_all_the_same_may_have_found_no_gpu(
    sessions: Any, load_error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """1.22 does: what was refused was said to have its library, and nothing of a GPU."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("ctypes.CDLL", lambda *_: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: SimpleNamespace(get_providers=lambda: names[1:]))
    with pytest.raises(load_error, match="its library can be loaded; no GPU, or one or a driver that it does not"):
        sessions.open_session({"name": "m"}, tmp_path / "model.onnx", kind="GPU", device_id=0)


# As ONNX Runtime 1.31.1 said it, with a libcuda.so.1 that gave itself out for one of CUDA 12.4, and of an arena.
CUDA_35 = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static [ONNXRuntimeError] : 1 : "
    'FAIL : provider_options_utils.h:187 Parse Failed to parse provider option "device_id": CUDA failure 35: CUDA driver '
    "version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; file=x.cc ; line=70 ; expr=cudaGetDevice\n"
)
FULL = "bfc_arena.cc:376 void* AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 154389504\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CUDA_35, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"),
        (
            "CUBLAS failure 3: the library was not initialized ; GPU=0",
            "CUBLAS failure 3: the library was not initialized",
        ),
        (FULL, "Failed to allocate memory for requested buffer of size 154389504"),
    ],
)
def test_why_a_gpu_does_not_start_is_told_in_its_own_words(
    sessions: Any,
    load_error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: str,
    told: str,
) -> None:
    """ONNX Runtime's fallback printed it, and what was refused was said to have its libraries, and perhaps no GPU."""

    class Session:
        def __init__(self, *_: Any, enable_fallback: int = 1, **__: Any) -> None:
            if not enable_fallback:
                raise RuntimeError(error)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(load_error) as raised:
        sessions.open_session({"name": "m"}, tmp_path / "model.onnx", kind="GPU", device_id=0)
    assert f"'{tmp_path}/model.onnx': {told}; see that nvidia-smi shows the GPU" in str(raised.value)
    assert "a driver older than 580" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("usable", "threads"), [(16, 0), (4, 4), (1, 1)])  # 0 leaves the choice to ONNX Runtime
def test_threads_are_those_that_the_container_may_use(
    sessions: Any, monkeypatch: pytest.MonkeyPatch, usable: int, threads: int
) -> None:
    monkeypatch.setattr(sessions, "seen_cores", lambda: 16)
    monkeypatch.setattr(sessions, "usable_cores", lambda: usable)
    assert sessions.session_options({"name": "m"}).intra_op_num_threads == threads
    assert sessions.session_options(config(intra_op_thread_count="7")).intra_op_num_threads == 7


@pytest.mark.parametrize("parameter", ["cudnn_conv_algo_search", "arena_extend_strategy"])
def test_gpu_parameters_without_meaning(sessions: Any, load_error: type[Exception], parameter: str) -> None:
    with pytest.raises(load_error, match=f"unsupported.*{parameter} 7"):
        sessions.execution_providers(config(**{parameter: "7"}), kind="GPU", device_id=0)


def test_unknown_precision(sessions: Any, load_error: type[Exception]) -> None:
    made = _accelerators("gpu", {"name": "tensorrt", "parameters": {"precision_mode": "FP3"}})
    with pytest.raises(load_error, match="unsupported precision mode 'FP3'"):
        sessions.execution_providers(made, kind="GPU", device_id=0)


def test_model_file(sessions: Any, load_error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(load_error, match=r"unable to find '.*/model\.onnx' for model instance 'm'; put"):
        sessions.model_file({"name": "m"}, tmp_path)
    (tmp_path / "model.onnx").touch()
    assert sessions.model_file({"name": "m", "default_model_filename": ""}, tmp_path) == tmp_path / "model.onnx"
    (tmp_path / "net").mkdir()
    named = {"name": "m", "default_model_filename": "net"}
    with pytest.raises(load_error, match=r"unable to find '.*/net/model\.onnx'"):
        sessions.model_file(named, tmp_path)
    (tmp_path / "net" / "model.onnx").touch()
    assert sessions.model_file(named, tmp_path) == tmp_path / "net" / "model.onnx"


@pytest.mark.parametrize("content", [b"", b"not an onnx file"])
def test_corrupt_file(sessions: Any, load_error: type[Exception], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(load_error, match=r"unable to load model 'm' from .*model\.onnx.*export or copy the file again"):
        sessions.open_session({"name": "m"}, path, kind="CPU", device_id=0)


def test_missing_external_data(sessions: Any, load_error: type[Exception], nets: Any, tmp_path: Path) -> None:
    import numpy as np

    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    model = nets.model(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", onnx.TensorProto.FLOAT, ["N", 64])],
        [value("y", onnx.TensorProto.FLOAT, ["N", 64])],
        [weight],
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    assert sessions.open_session({"name": "m"}, path, kind="CPU", device_id=0).get_inputs()[0].name == "x"
    (tmp_path / "weights.data").unlink()
    with pytest.raises(load_error, match="with its external data beside it"):
        sessions.open_session({"name": "m"}, path, kind="CPU", device_id=0)


def test_cudas_libraries_are_loaded_from_wheels_for_a_gpu_alone(
    sessions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host needs its driver alone: [gpu] brings the rest, where the loader would not look."""
    loaded: list[str | None] = []

    def preload(directory: str | None = None) -> None:
        loaded.append(directory)
        print("what it could not load")

    below = [tmp_path / "below", tmp_path / "own"]
    for folder in ("below/nvidia/cudnn/lib", "below/nvidia/cu13/lib", "own/nvidia/cudnn/lib", "own/onnxruntime"):
        (tmp_path / folder).mkdir(parents=True)
    (below[0] / "nvidia/cu13/lib/libnvrtc-builtins.so.13.0").touch()
    monkeypatch.setattr("ctypes.CDLL", lambda path: loaded.append(path))
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "own/onnxruntime/__init__.py"))
    monkeypatch.setattr(sys, "path", [*sys.path, "", *map(str, below)])
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: SimpleNamespace(get_providers=lambda: names))
    sessions.open_session({"name": "m"}, tmp_path / "model.onnx", kind="CPU", device_id=0)
    assert loaded == []
    sessions.open_session({"name": "m"}, tmp_path / "model.onnx", kind="GPU", device_id=0)
    assert loaded[0] is None  # what is beside ONNX Runtime
    # Of environments that this one is laid over, what is not; and what NVRTC asks for by a bare name.
    cuda = f"{below[0]}/nvidia/cu13/lib"
    found = [path for path in loaded if str(path).startswith(str(tmp_path))]
    assert found == [cuda, f"{cuda}/libnvrtc-builtins.so.13.0"]
    assert capsys.readouterr().out == ""


def test_the_tensorrt_of_pips_wheel_is_opened(sessions: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The provider asks for libnvinfer.so.10 by that name, which no loader finds in site-packages."""
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    for name in ("__init__.py", "libnvonnxparser.so.10", "libnvinfer.so.10", "libnvinfer_plugin.so.10"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    opened: list[str] = []

    class Session:
        def __init__(self, *_: Any, **options: Any) -> None:
            self._asked = [name for name, _ in options["providers"]]

        def get_providers(self) -> list[str]:
            return self._asked

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    monkeypatch.setattr("ctypes.CDLL", lambda path, *_: opened.append(path))
    monkeypatch.setattr(sessions, "load_cuda", lambda: None)
    for accelerators in ((), ({"name": "tensorrt"},)):
        assert opened == []
        sessions.open_session(_accelerators("gpu", *accelerators), tmp_path / "m.onnx", kind="GPU", device_id=0)
    assert opened == [str(folder / name) for name in ("libnvinfer.so.10", "libnvonnxparser.so.10")]
