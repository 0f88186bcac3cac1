"""Opens the ONNX Runtime session that a `config.pbtxt` asks for.

The fields are those that Triton's C++ onnxruntime backend reads (its README, "Model Config Options"), with
the same defaults; what it ignores is ignored here. Runs inside the Python backend's stub: it imports the
standard library, onnxruntime and its neighbours, `cnclip_machine` among them, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
from cnclip_machine import seen_cores, usable_cores

if TYPE_CHECKING:
    from cnclip_server.backends.onnxruntime.cnclip_ort_checks import LoadError
    from cnclip_server.backends.onnxruntime.cnclip_ort_libraries import load_cuda, load_tensorrt, why_not_started
else:
    # Triton puts this folder on the stub's sys.path; cnclip_server itself may not be importable there.
    from cnclip_ort_checks import LoadError
    from cnclip_ort_libraries import load_cuda, load_tensorrt, why_not_started

_DEFAULT_FILE = "model.onnx"
_INITIALIZERS = "session.use_device_allocator_for_initializers"
_ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"

# optimization.graph.level of config.pbtxt -> ONNX Runtime's level; 0 and an absent field mean everything.
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_CUDNN_SEARCH = {0: "EXHAUSTIVE", 1: "HEURISTIC", 2: "DEFAULT"}
_ARENA_STRATEGY = {0: "kNextPowerOfTwo", 1: "kSameAsRequested"}
_CUDA_BOOLEANS = frozenset({"do_copy_in_default_stream", "use_ep_level_unified_stream", "use_tf32"})
_TENSORRT_PRECISION = {"FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable"}
_TENSORRT_NAMES = {"max_workspace_size_bytes": "trt_max_workspace_size"}
# What of ONNX Runtime's errors a GPU is to blame for, without the places in its source.
_GPU_FAILURE = re.compile(r"CU\w+ failure \d+: [^;]*[^; ]|Failed to allocate memory for requested buffer of size \d+")
_GPU_FIX = (
    "see that nvidia-smi shows the GPU, and room in its memory; with a driver older than 580, or a GPU older than "
    "Turing, pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0', PyPI's last for CUDA 12"
)

Provider = tuple[str, dict[str, str]]


def model_file(config: Mapping[str, Any], version_folder: Path) -> Path:
    """Finds the ONNX file: `default_model_filename` or `model.onnx`; if that is a folder, `model.onnx` in it.

    Raises:
        LoadError: There is no such file.
    """
    path = version_folder / (config.get("default_model_filename") or _DEFAULT_FILE)
    if path.is_dir():
        path = path / _DEFAULT_FILE
    if not path.is_file():
        raise LoadError(
            f"unable to find '{path}' for model instance '{config['name']}'; put the ONNX file there, or "
            "name it in default_model_filename"
        )
    return path


def open_session(config: Mapping[str, Any], path: Path, *, kind: str, device_id: int) -> ort.InferenceSession:
    """Opens a session on an ONNX file.

    Args:
        config: The model's configuration (parsed JSON).
        path: The ONNX file.
        kind: The instance's kind as Triton says it: `CPU`, `GPU` or `MODEL`.
        device_id: The GPU's number, used where the kind is `GPU`.

    Raises:
        LoadError: The file cannot be read, a parameter has no meaning, or an execution provider is missing or does
            not work.
    """
    options = session_options(config)
    providers = execution_providers(config, kind=kind, device_id=device_id)
    if kind == "GPU":
        load_cuda()
    if any(name == "TensorrtExecutionProvider" for name, _ in providers):
        load_tensorrt()
    try:
        # Without its fallback, which goes on with the CPU and prints why, where nobody reads it.
        session = ort.InferenceSession(str(path), sess_options=options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no base class of their own.
        said = str(error).strip()  # some end with their line
        fix = "export or copy the file again, with its external data beside it"
        if failure := _GPU_FAILURE.search(said):
            said, fix = failure[0], _GPU_FIX
        raise LoadError(f"unable to load model '{config['name']}' from '{path}': {said}; {fix}") from error
    _check_providers(config["name"], [name for name, _ in providers], session.get_providers())
    return session


def _check_providers(model: str, asked: Sequence[str], got: Sequence[str]) -> None:
    """Refuses a session that lacks a provider it was asked for: ONNX Runtime warns, and goes on with the CPU.

    Raises:
        LoadError: With what its library lacks.
    """
    for name in asked:
        if name not in got:
            raise LoadError(
                f"unable to load model '{model}': it asks for {name}, which this onnxruntime {ort.__version__} has and "
                f"could not start ({why_not_started(name)}), so that it would run on {', '.join(got)}; install the "
                "libraries of the CUDA that this onnxruntime was built for, and a driver that is new enough, or ask "
                "for KIND_CPU without accelerators"
            )


def session_options(config: Mapping[str, Any]) -> ort.SessionOptions:
    """Session options from `optimization.graph.level` and `parameters`.

    Raises:
        LoadError: A parameter is not of its type, or out of its range.
    """
    options = ort.SessionOptions()
    # Warnings of ONNX Runtime are about graphs and devices that the reader of a server's log did not write.
    options.log_severity_level = 3
    # By default ONNX Runtime's threads spin between operators and after a run, to be awake for the next. Here
    # every instance is a process of its own and shares the cores with the server, the preprocessing and the
    # tokeniser. On 2 busy cores (48 layers of 768x768, 2 threads) not spinning halved the latency of 8 rows
    # (24 -> 12 ms), took a third of that of 197 rows (192 -> 125 ms), and gave two instances side by side 1.7
    # times the rate.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")

    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

    mode = _parameter(config, "execution_mode", int, 0)
    if mode not in (0, 1):
        raise LoadError(
            f"unable to load model '{config['name']}': expected values for execution_mode are 0 or 1 but got "
            f"{mode}; write 0 (sequential) or 1 (parallel)"
        )
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if mode else ort.ExecutionMode.ORT_SEQUENTIAL
    # 0, and anything below it, leaves the choice to ONNX Runtime: as many threads as there are cores. It does not know
    # what a container may use of them.
    granted = cores if (cores := usable_cores()) < seen_cores() else 0
    options.intra_op_num_threads = max(0, _parameter(config, "intra_op_thread_count", int, 0)) or granted
    options.inter_op_num_threads = max(0, _parameter(config, "inter_op_thread_count", int, 0))
    options.enable_cpu_mem_arena = _parameter(config, "enable_mem_arena", _boolean, True)
    options.enable_mem_pattern = _parameter(config, "enable_mem_pattern", _boolean, True)
    if initializers := _parameter(config, _INITIALIZERS, str, ""):
        options.add_session_config_entry(_INITIALIZERS, initializers)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            raise LoadError(f"unable to load the operator library '{library}': {error}") from error
    return options


def run_options(config: Mapping[str, Any]) -> ort.RunOptions:
    """Options of every run: `memory.enable_memory_arena_shrinkage`."""
    options = ort.RunOptions()
    if shrinkage := _parameter(config, _ARENA_SHRINKAGE, str, ""):
        options.add_run_config_entry(_ARENA_SHRINKAGE, shrinkage)
    return options


def shares_session(config: Mapping[str, Any]) -> bool:
    """Whether `share_session_between_instances` is asked for; instances here are processes and share none."""
    return bool(_parameter(config, "share_session_between_instances", _boolean, False))


def execution_providers(config: Mapping[str, Any], *, kind: str, device_id: int) -> list[Provider]:
    """The execution providers in order of preference, the CPU's last, with their options.

    As in the C++ backend, GPU accelerators count for `KIND_GPU` instances alone, and CPU accelerators for
    all.

    Raises:
        LoadError: An accelerator is unknown, or this onnxruntime was built without it.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    providers: list[Provider] = []
    if kind == "GPU":
        cuda: dict[str, str] = {}
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            parameters = dict(accelerator.get("parameters", {}))
            if accelerator["name"] == "tensorrt":
                providers.append(("TensorrtExecutionProvider", _tensorrt_options(parameters, device_id)))
            elif accelerator["name"] == "cuda":
                cuda = _checked_cuda_parameters(config["name"], parameters)
            else:
                raise LoadError(_unknown(accelerator["name"], "tensorrt and cuda"))
        # ONNX Runtime's own default is 1: FP32 with the 10 bits of mantissa that TF32 keeps. FP32 is FP32 here unless
        # the configuration says otherwise.
        providers.append(("CUDAExecutionProvider", {"use_tf32": "0", **cuda, **_cuda_options(config, device_id)}))
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        if accelerator["name"] != "openvino":
            raise LoadError(_unknown(accelerator["name"], "openvino"))
        providers.append(("OpenVINOExecutionProvider", {"device_type": "CPU"}))
    available = ort.get_available_providers()
    for name, _ in providers:
        if name not in available:
            raise LoadError(
                f"unable to load model '{config['name']}': the configuration needs {name}, and the "
                f"onnxruntime {ort.__version__} of this environment has only {', '.join(available)}; ask for "
                "KIND_CPU without accelerators, or serve the repository with NVIDIA's container"
            )
    return [*providers, ("CPUExecutionProvider", {})]


def _checked_cuda_parameters(model: str, parameters: dict[str, str]) -> dict[str, str]:
    """The parameters of the accelerator "cuda", which the C++ backend hands on as they are, but for their spelling.

    Raises:
        LoadError: One that is true or false is neither.
    """
    for name in _CUDA_BOOLEANS & set(parameters):
        try:
            parameters[name] = "1" if _boolean(parameters[name]) else "0"
        except ValueError:
            raise LoadError(
                f"unable to load model '{model}': parameter '{name}' of the accelerator cuda has the value "
                f"'{parameters[name]}'; write 0 or 1"
            ) from None
    return parameters


def _cuda_options(config: Mapping[str, Any], device_id: int) -> dict[str, str]:
    """CUDA options from the top-level parameters, as the C++ backend names them."""
    search = _parameter(config, "cudnn_conv_algo_search", int, 0)
    strategy = _parameter(config, "arena_extend_strategy", int, 0)
    if search not in _CUDNN_SEARCH or strategy not in _ARENA_STRATEGY:
        raise LoadError(
            f"unable to load model '{config['name']}': unsupported cudnn_conv_algo_search {search} (0, 1, 2) "
            f"or arena_extend_strategy {strategy} (0, 1) is requested"
        )
    options = {
        "device_id": str(device_id),
        "cudnn_conv_algo_search": _CUDNN_SEARCH[search],
        "arena_extend_strategy": _ARENA_STRATEGY[strategy],
        "do_copy_in_default_stream": _parameter(config, "do_copy_in_default_stream", str, "1"),
    }
    if limit := _parameter(config, "gpu_mem_limit", str, ""):
        options["gpu_mem_limit"] = limit
    return options


def _tensorrt_options(parameters: Mapping[str, str], device_id: int) -> dict[str, str]:
    """TensorRT options: most carry ONNX Runtime's own names already."""
    options = {"device_id": str(device_id)}
    for name, value in parameters.items():
        if name == "precision_mode":
            if value in _TENSORRT_PRECISION:
                options[_TENSORRT_PRECISION[value]] = "1"
            elif value != "FP32":
                raise LoadError(f"unsupported precision mode '{value}' is requested; write FP32, FP16, BF16 or INT8")
        else:
            options[_TENSORRT_NAMES.get(name, name if name.startswith("trt_") else f"trt_{name}")] = value
    return options


def _unknown(name: str, known: str) -> str:
    return f"unknown Execution Accelerator '{name}' is requested; known here: {known}"


def _parameter(config: Mapping[str, Any], name: str, parse: Callable[[str], Any], default: Any) -> Any:
    """One of the configuration's `parameters`, parsed, or the default where it is absent."""
    entry = config.get("parameters", {}).get(name)
    if entry is None:
        return default
    text = entry.get("string_value", "")
    try:
        return parse(text)
    except ValueError:
        raise LoadError(
            f"unable to load model '{config['name']}': parameter '{name}' has the value '{text}'; write "
            f"{'true or false' if parse is _boolean else 'a whole number'}"
        ) from None


def _boolean(text: str) -> bool:
    """The spellings of a boolean that Triton's backends take."""
    lowered = text.lower()
    if lowered in ("true", "on", "1"):
        return True
    if lowered in ("false", "off", "0"):
        return False
    raise ValueError(text)
