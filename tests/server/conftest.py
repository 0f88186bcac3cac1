"""Tiny ONNX models, model repositories made of them, and the stand-in loaded without a server."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cnclip_server._backends import STAND_IN
from onnx import TensorProto, helper

OPSET = 20
IR_VERSION = 9


class Nets:
    """Builds ONNX models of one or two nodes."""

    @staticmethod
    def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()) -> Any:
        graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), list(weights))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    @classmethod
    def identity(cls, shape: Sequence[Any] | None = ("N", "L"), element: int = TensorProto.FLOAT) -> Any:
        """y = x."""
        return cls.model(
            [helper.make_node("Identity", ["x"], ["y"])],
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info("y", element, shape)],
        )

    @classmethod
    def rows_of_run(cls) -> Any:
        """y[n] = x[n], and rows[n] = the number of rows that the session's run had."""
        zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
        return cls.model(
            [
                helper.make_node("Identity", ["x"], ["y"]),
                helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
                helper.make_node("Concat", ["shape", "one"], ["column"], axis=0),
                helper.make_node("Add", ["shape", "zero"], ["count"]),
                helper.make_node("Expand", ["count", "column"], ["rows"]),
            ],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L"])],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L"]),
                helper.make_tensor_value_info("rows", TensorProto.INT64, ["N", 1]),
            ],
            [zero, helper.make_tensor("one", TensorProto.INT64, [1], [1])],
        )


class Repository:
    """A model repository under construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        model: Any,
        config: str,
        *,
        file: str = "model.onnx",
        backend: str = "onnxruntime",
    ) -> Path:
        """Writes a model; `model` may be a ModelProto, the bytes of a file, or None for no file.

        Returns:
            Its version folder.
        """
        version = self.path / name / "1"
        target = version / file
        target.parent.mkdir(parents=True)
        if model is not None:
            target.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        instances = "" if "instance_group" in config else "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        text = f'name: "{name}"\nbackend: "{backend}"\n{instances}{config}\n'
        (self.path / name / "config.pbtxt").write_text(text)
        return version


def io(kind: str, name: str, data_type: str = "TYPE_FP32", dims: str = "-1", more: str = "") -> str:
    """One `input` or `output` of a config.pbtxt."""
    return f'{kind} [ {{ name: "{name}" data_type: {data_type} dims: [ {dims} ] {more} }} ]\n'


XY = "max_batch_size: 8\n" + io("input", "x") + io("output", "y")


@pytest.fixture(scope="session")
def nets() -> type[Nets]:
    return Nets


@pytest.fixture(scope="session")
def xy() -> str:
    """The configuration of `Nets.identity()`."""
    return XY


@pytest.fixture(scope="session")
def tensor_config() -> Callable[..., str]:
    return io


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository of one model, `echo`."""
    made = Repository(tmp_path / "repository")
    made.add("echo", Nets.identity(), XY)
    return made


@pytest.fixture(scope="session")
def make_repository() -> Callable[[Path], Repository]:
    return Repository


@pytest.fixture(scope="session")
def eventually() -> Callable[..., bool]:
    """Polls a condition until it holds or the time is over."""

    def poll(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    return poll


@pytest.fixture(scope="session")
def processes_of() -> Callable[[int], list[str]]:
    """The command lines of a server's process group: tritonserver's own and its stubs'."""

    def find(group: int) -> list[str]:
        found = []
        for folder in Path("/proc").iterdir():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                # Of other tests' processes some have names that are no UTF-8.
                command = os.fsdecode((folder / "cmdline").read_bytes().replace(b"\0", b" "))
            except (OSError, IndexError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(command)
        return found

    return find


class FakeTritonError:
    INTERNAL = "internal"
    INVALID_ARG = "invalid"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class FakeTensor:
    """`pb_utils.Tensor`, which copies what it is given: so does this."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self._name, self._array = name, array.copy()

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array

    def is_cpu(self) -> bool:
        return True


class FakeDeviceTensor:
    """One that lies on a device, which here is the host: numpy must not be asked of it."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return False

    def to_dlpack(self) -> Any:
        return self._array.__dlpack__()


class FakeRequest:
    def __init__(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
        self._inputs = [
            array if isinstance(array, FakeDeviceTensor) else FakeTensor(name, np.ascontiguousarray(array))
            for name, array in inputs.items()
        ]
        self._outputs = outputs

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

    def requested_output_names(self) -> Sequence[str]:
        return self._outputs


class FakeResponse:
    def __init__(self, tensors: Sequence[FakeTensor] = (), error: FakeTritonError | None = None) -> None:
        self.error = error
        self.arrays = {tensor.name(): tensor.as_numpy() for tensor in tensors}


class FakeModelError(Exception):
    """`pb_utils.TritonModelException`."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in's model.py, loaded as Triton loads it, over a fake triton_python_backend_utils."""
    warnings: list[str] = []
    fake = ModuleType("triton_python_backend_utils")
    fake.__dict__.update(
        TritonError=FakeTritonError,
        TritonModelException=FakeModelError,
        Tensor=FakeTensor,
        InferenceResponse=FakeResponse,
        Logger=SimpleNamespace(log_warn=warnings.append),
        Request=FakeRequest,
        DeviceTensor=FakeDeviceTensor,
        warnings=warnings,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.syspath_prepend(str(STAND_IN))
    spec = importlib.util.spec_from_file_location("stand_in_model", STAND_IN / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stand_in_model", module)
    spec.loader.exec_module(module)
    yield module
    for name in ("cnclip_ort_checks", "cnclip_ort_device", "cnclip_ort_libraries", "cnclip_ort_session"):
        sys.modules.pop(name, None)
