"""The stand-in inside a real tritonserver. One server for the whole module: models are loaded into it one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from cnclip_server import TritonServer
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

pytestmark = pytest.mark.triton

NUMERIC = {
    "BOOL": (TensorProto.BOOL, np.bool_),
    "UINT8": (TensorProto.UINT8, np.uint8),
    "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32),
    "UINT64": (TensorProto.UINT64, np.uint64),
    "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16),
    "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16),
    "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64),
}
# Long enough for requests sent together to meet in one batch, on a machine with other things to do.
TOGETHER = "dynamic_batching { max_queue_delay_microseconds: 300000 preferred_batch_size: [ 8 ] }\n"


class Served:
    """A repository, the server on it and a client."""

    def __init__(self, repository: Any, server: TritonServer, client: triton.InferenceServerClient) -> None:
        self.repository, self.server, self.client = repository, server, client

    def load(self, name: str, model: Any, config: str, **options: Any) -> Path:
        version: Path = self.repository.add(name, model, config, **options)
        self.client.load_model(name)
        return version

    def infer(self, model: str, outputs: tuple[str, ...] = (), **arrays: Any) -> Any:
        inputs = []
        for name, array in arrays.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
        return self.client.infer(model, inputs, outputs=wanted)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, make_repository: Any, nets: Any, xy: str) -> Iterator[Served]:
    repository = make_repository(tmp_path_factory.mktemp("served"))
    repository.add("echo", nets.identity(), xy)
    explicit = ("--model-control-mode=explicit", "--load-model=echo")
    with TritonServer(repository.path, grpc_port=0, http_port=0, metrics_port=0, extra_args=explicit) as server:
        client = triton.InferenceServerClient(server.grpc_url)
        try:
            yield Served(repository, server, client)
        finally:
            client.close()


def test_every_numeric_type(served: Served, nets: Any, tensor_config: Any) -> None:
    value = helper.make_tensor_value_info
    proto = nets.model(
        [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in NUMERIC],
        [value(f"x_{name}", element, ["N", 3]) for name, (element, _) in NUMERIC.items()],
        [value(f"y_{name}", element, ["N", 3]) for name, (element, _) in NUMERIC.items()],
    )
    config = "max_batch_size: 4\n"
    for name in NUMERIC:
        config += tensor_config("input", f"x_{name}", f"TYPE_{name}", "3")
        config += tensor_config("output", f"y_{name}", f"TYPE_{name}", "3")
    served.load("types", proto, config)
    arrays = {}
    for name, (_, dtype) in NUMERIC.items():
        ends = (0, 1, 1) if name == "BOOL" else (0, 1, np.finfo(dtype).max if "FP" in name else np.iinfo(dtype).max)
        arrays[f"x_{name}"] = np.array([ends, ends[::-1]], dtype=dtype)
    result = served.infer("types", **arrays)
    for name, (_, dtype) in NUMERIC.items():
        answer = result.as_numpy(f"y_{name}")
        assert answer.dtype == dtype
        np.testing.assert_array_equal(answer, arrays[f"x_{name}"])


def test_strings(served: Served, nets: Any, tensor_config: Any) -> None:
    config = "max_batch_size: 4\n" + tensor_config("input", "x", "TYPE_STRING", "2")
    config += tensor_config("output", "y", "TYPE_STRING", "2")
    served.load("strings", nets.identity(["N", 2], TensorProto.STRING), config)
    texts = [["一只猫".encode(), b""], [b"a \"quoted\" 'word'", "𠮷😀".encode()]]
    assert served.infer("strings", x=np.array(texts, dtype=np.object_)).as_numpy("y").tolist() == texts


def test_a_bad_request_leaves_its_neighbours_alone(
    served: Served, nets: Any, tensor_config: Any, eventually: Any
) -> None:
    config = "max_batch_size: 8\n" + TOGETHER + tensor_config("input", "x", "TYPE_STRING", "1")
    config += tensor_config("output", "y", "TYPE_STRING", "1")
    served.load("neighbours", nets.identity(["N", 1], TensorProto.STRING), config)
    texts = [b"one", b"two", b"\xff\xfe", b"four"]

    def ask(text: bytes) -> Any:
        try:
            return served.infer("neighbours", x=np.array([[text]], dtype=np.object_)).as_numpy("y")[0, 0]
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, texts))
    assert [answers[0], answers[1], answers[3]] == [b"one", b"two", b"four"]
    assert "not UTF-8" in answers[2].message()
    assert answers[2].status() == "StatusCode.INVALID_ARGUMENT"
    # Triton counts after it has answered.
    assert eventually(lambda: _counted(served, "neighbours")["requests"] == len(texts))
    # Otherwise they never were neighbours, and this test says nothing.
    assert 0 < _counted(served, "neighbours")["runs"] < len(texts)


def _counted(served: Served, model: str) -> dict[str, int]:
    """How many requests Triton has counted for a model, and how many executions they took."""
    (statistics,) = served.client.get_inference_statistics(model).model_stats
    total = statistics.inference_stats
    return {"requests": total.success.count + total.fail.count, "runs": statistics.execution_count}


def test_dynamic_batches_are_one_run_and_come_back_in_order(served: Served, nets: Any, tensor_config: Any) -> None:
    config = "max_batch_size: 8\n" + TOGETHER + tensor_config("input", "x") + tensor_config("output", "y")
    config += tensor_config("output", "rows", "TYPE_INT64", "1")
    served.load("batched", nets.rows_of_run(), config)
    inputs = [np.full((1 + index % 2, 3 + index // 4), index, np.float32) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: served.infer("batched", x=x), inputs))
    for x, result in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("y"), x)
    assert max(int(result.as_numpy("rows").max()) for result in results) > 2


def test_requested_outputs(served: Served, nets: Any, tensor_config: Any) -> None:
    config = "max_batch_size: 8\n" + tensor_config("input", "x") + tensor_config("output", "y")
    served.load("requested", nets.rows_of_run(), config + tensor_config("output", "rows", "TYPE_INT64", "1"))
    result = served.infer("requested", ("rows",), x=np.zeros((2, 3), np.float32))
    assert [output.name for output in result.get_response().outputs] == ["rows"]
    assert result.as_numpy("rows").tolist() == [[2], [2]]
    with pytest.raises(InferenceServerException, match="unexpected inference output 'z'"):
        served.infer("requested", ("z",), x=np.zeros((2, 3), np.float32))


def test_two_instances(served: Served, nets: Any, xy: str, processes_of: Any) -> None:
    served.load("twins", nets.identity(), "instance_group [ { count: 2 kind: KIND_CPU } ]\n" + xy)
    stubs = [command for command in processes_of(served.server.pid) if "twins_0_" in command]
    assert len(stubs) == 2
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda n: served.infer("twins", x=np.full((1, 1), n, np.float32)), range(12)))
    assert [float(value.as_numpy("y")[0, 0]) for value in values] == list(range(12))


def test_without_batching(served: Served, nets: Any, tensor_config: Any) -> None:
    config = "max_batch_size: 0\n" + tensor_config("input", "x", dims="2, -1")
    served.load("whole", nets.identity([2, "L"]), config + tensor_config("output", "y", dims="2, -1"))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(served.infer("whole", x=x).as_numpy("y"), x)


def test_reshape(served: Served, nets: Any, tensor_config: Any) -> None:
    config = "max_batch_size: 4\n" + tensor_config("input", "x", dims="2, 3", more="reshape { shape: [ 6 ] }")
    config += tensor_config("output", "y", dims="3, 2", more="reshape { shape: [ 6 ] }")
    served.load("reshaped", nets.identity(["N", 6]), config)
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(served.infer("reshaped", x=x).as_numpy("y"), x.reshape(2, 3, 2))


def test_optional_inputs(served: Served, nets: Any, tensor_config: Any) -> None:
    value = helper.make_tensor_value_info
    proto = nets.model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, ["L"]), value("w", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, ["L"])],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [10.0])],
    )
    config = "max_batch_size: 0\n" + tensor_config("input", "x") + tensor_config("output", "y")
    config += tensor_config("input", "w", dims="1", more="optional: true")
    served.load("optional", proto, config)
    x = np.ones(2, np.float32)
    assert served.infer("optional", x=x).as_numpy("y").tolist() == [11.0, 11.0]
    assert served.infer("optional", x=x, w=np.array([5], np.float32)).as_numpy("y").tolist() == [6.0, 6.0]


def test_scalars(served: Served, nets: Any, tensor_config: Any) -> None:
    config = "max_batch_size: 0\n" + tensor_config("input", "x", dims="1") + tensor_config("output", "y", dims="1")
    served.load("scalar", nets.identity([]), config)
    assert served.infer("scalar", x=np.array([2.5], np.float32)).as_numpy("y").tolist() == [2.5]


def test_a_folder_of_external_data(served: Served, nets: Any, xy: str) -> None:
    served.load("folder", nets.identity(), 'default_model_filename: "net"\n' + xy, file="net/model.onnx")
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(served.infer("folder", x=x).as_numpy("y"), x)


def test_every_parameter_at_once(served: Served, nets: Any, xy: str) -> None:
    parameters = {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "1",
        "enable_mem_pattern": "false",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": "1",
        "share_session_between_instances": "true",
        "cudnn_conv_algo_search": "1",
        "gpu_mem_limit": "1000",
        "arena_extend_strategy": "1",
        "do_copy_in_default_stream": "1",
    }
    config = "optimization { graph { level: 1 } }\n" + "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n' for name, value in parameters.items()
    )
    served.load("tuned", nets.identity(), config + xy)
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(served.infer("tuned", x=x).as_numpy("y"), x)
    assert "model 'tuned': share_session_between_instances has no effect here" in served.server.log_path.read_text()


def test_thread_count_is_the_processes_own(served: Served, nets: Any, xy: str) -> None:
    """ONNX Runtime makes one thread fewer than asked for: the caller's own takes part."""

    def threads(name: str, count: int) -> int:
        parameter = f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{count}" }} }}\n'
        served.load(name, nets.identity(), parameter + xy)
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # another test's process that has ended meanwhile
                if folder.name.isdigit() and f"{name}_0_0".encode() in (folder / "cmdline").read_bytes():
                    return len(list((folder / "task").iterdir()))
        raise AssertionError(f"no process serves {name}")

    assert threads("five", 5) - threads("single", 1) == 4


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "fixed_batch",
            None,
            r"tensor 'x': for the model to support batching.*shape expected by the model is \[1,-1\]",
        ),
        ("wrong_dims", "max_batch_size: 8", "'x': the model expects 2 dimensions .*specifies 3 dimensions"),
        ("missing_file", None, "unable to find '.*/missing_file/1/model.onnx' for model instance"),
        ("corrupt", None, "unable to load model 'corrupt' from .*Protobuf parsing failed.*copy the file again"),
        ("bfloat16", "TYPE_BF16", "unsupported datatype TYPE_BF16 for input 'x'"),
        ("ragged", "allow_ragged_batch: true", "does not do allow_ragged_batch of input 'x'"),
        (
            "openvino",
            'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }\n',
            "the configuration needs OpenVINOExecutionProvider",
        ),
        (
            "parallel",
            'parameters { key: "execution_mode" value { string_value: "3" } }\n',
            "execution_mode are 0 or 1 but got 3",
        ),
    ],
)
def test_refusals_reach_the_client(
    served: Served, nets: Any, xy: str, tensor_config: Any, name: str, config: str | None, message: str
) -> None:
    models = {
        "fixed_batch": nets.identity([1, "L"]),
        "missing_file": None,
        "corrupt": b"not an onnx file",
        "bfloat16": nets.identity(element=TensorProto.BFLOAT16),
    }
    texts = {
        "wrong_dims": "max_batch_size: 8\n" + tensor_config("input", "x", dims="2, 3") + tensor_config("output", "y"),
        "bfloat16": "max_batch_size: 8\n"
        + tensor_config("input", "x", "TYPE_BF16")
        + tensor_config("output", "y", "TYPE_BF16"),
        "ragged": "max_batch_size: 8\n"
        + tensor_config("input", "x", more="allow_ragged_batch: true")
        + tensor_config("output", "y"),
    }
    text = texts.get(name, (config or "") + xy)
    with pytest.raises(InferenceServerException, match=message):
        served.load(name, models.get(name, nets.identity()), text)
    assert served.client.is_model_ready("echo")
