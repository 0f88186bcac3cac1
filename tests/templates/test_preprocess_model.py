"""The preprocessing's model with a card, loaded as Triton loads it: answers, refusals, metrics, and what it logs."""

from __future__ import annotations

import importlib
import json
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cnclip_card
import cnclip_machine
import cnclip_pixels
import numpy as np
import pytest
from cnclip_card import Card, CardUnfit
from cnclip_card._decoder import NvImageCodec
from cnclip_pixels import BadImage
from cnclip_templates import templates_folder

from tests.resize.card_twin import Twin, can_compile, compile_twin
from tests.resize.test_card import ALL, Capsule

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: the extra [gpu-decode] has it")

pytestmark = pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler")

SIDE = 32


class ModelError(Exception):
    """`pb_utils.TritonModelException`."""


class Metrics:
    """What Triton's metrics came to, by family and labels; `off` as where a server has none."""

    def __init__(self, off: bool = False) -> None:
        self.off = off
        self.counts: dict[tuple[str, ...], int] = {}

    def __call__(self, name: str, description: str, kind: int) -> Any:
        if self.off:
            raise ModelError("metrics are turned off")
        return SimpleNamespace(Metric=lambda labels: SimpleNamespace(increment=lambda by: self._add(name, labels, by)))

    COUNTER = 0

    def _add(self, name: str, labels: dict[str, str], by: int) -> None:
        assert (labels["model"], labels["version"]) == ("m-image-preprocess", "3")
        key = (name, *(value for label, value in labels.items() if label not in ("model", "version")))
        self.counts[key] = self.counts.get(key, 0) + by


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A version's folder as it is served, and Triton's module faked: `logged`, `metrics`, `load` and `ask`."""
    templates = templates_folder()
    for file in (templates / "image-preprocess/1/model.py", *templates.glob("cnclip_*.py")):
        shutil.copy(file, tmp_path)
    for package in (cnclip_machine, cnclip_pixels):
        shutil.copy(str(package.__file__), tmp_path / f"{package.__name__}.py")
    logged: list[str] = []
    metrics = Metrics()
    fake = ModuleType("triton_python_backend_utils")
    fake.__dict__.update(
        Logger=SimpleNamespace(log_warn=logged.append, log_info=logged.append),
        MetricFamily=metrics,
        TritonModelException=ModelError,
        TritonError=Refusal,
        Tensor=Tensor,
        InferenceResponse=Response,
        get_input_tensor_by_name=lambda request, name: request.inputs[name],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in tmp_path.glob("cnclip_*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    importlib.invalidate_caches()
    arguments = ["tritonserver", "--pinned-memory-pool-byte-size=0"]
    monkeypatch.setattr(importlib.import_module("cnclip_handover"), "server_arguments", lambda: arguments)

    def load(decoding: str, limit: int = 10**8) -> Any:
        parameters = {"resolution": SIDE, "threads": 2, "max_image_pixels": limit, "decoding": decoding}
        config = {
            "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
            "instance_group": [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1, 2]}],
        }
        model = runpy.run_path(str(tmp_path / "model.py"))["TritonPythonModel"]()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_name": "m-image-preprocess",
                "model_version": "3",
                "model_instance_device_id": "1",
            }
        )
        return model

    return SimpleNamespace(logged=logged, metrics=metrics, load=load, arguments=arguments)


class Refusal:
    INVALID_ARG, UNAVAILABLE = "invalid", "unavailable"

    def __init__(self, message: str, code: str) -> None:
        self.said = (message, code)


class Tensor:
    def __init__(self, name: str, array: Any, on_card: bool = False) -> None:
        self.name, self.array, self.on_card = name, array, on_card

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        return cls(name, np.from_dlpack(Capsule(capsule)).copy(), True)


class Response:
    def __init__(self, tensors: Sequence[Tensor] = (), error: Refusal | None = None) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.error = error and error.said


def request(*names: str) -> Any:
    array = np.array([[ALL[name]] for name in names], dtype=object)
    return SimpleNamespace(
        inputs={"IMAGE": SimpleNamespace(as_numpy=lambda: array)},
        request_id=lambda: "",
        requested_output_names=lambda: ["pixels", "pillow"],
    )


@pytest.fixture
def twin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Twin:
    """What `open_card` opens, and what it was asked for."""
    card = Twin(compile_twin(tmp_path_factory.mktemp("twin")))

    def open_card(side: int, formats: Sequence[str], **asked: int) -> Card:
        assert asked == {"number": 1, "threads": 2, "processes": 2}
        return Card(card, NvImageCodec(None, 1), side=side, formats=formats, memory=1 << 20)

    monkeypatch.setattr(cnclip_card, "open_card", open_card)
    return card


REQUESTS = (
    ("420", "grey", "PNG"),
    ("422", "nothing", "4 eighths", "444"),
    ("GIF", "CMYK"),
    ("progressive",),
    ("more pixels than are allowed", "420"),
    ("large", "upscaled", "a pixel"),
)


def answers(model: Any, requests: Sequence[Sequence[str]] = REQUESTS) -> list[Any]:
    return model.execute([request(*names) for names in requests])  # type: ignore[no-any-return]


@pytest.mark.usefixtures("twin")
def test_answers_and_refusals_are_the_exact_ways(served: Any) -> None:
    """Word for word, and each request for itself."""
    ours, exact = answers(served.load("gpu")), answers(served.load("exact"))
    for names, one, other in zip(REQUESTS, ours, exact, strict=True):
        assert one.error == other.error, names
        assert set(one.tensors) == set(other.tensors)
        for name, tensor in one.tensors.items():
            assert np.array_equal(tensor.array, other.tensors[name].array), (names, name)
    assert [one.error is None for one in ours] == [True, False, True, True, False, True]
    assert ours[1].error[0].startswith('bad rows: {"1": "0 bytes", "2": "OSError: image file is truncated')
    assert {tensor.on_card for one in ours for name, tensor in one.tensors.items() if name == "pixels"} == {True}
    assert served.metrics.counts == {
        ("cnclip_card_images", "card"): 8,
        ("cnclip_card_images", "exact"): sum(map(len, REQUESTS)) - 8,
    }
    assert sum("JPEGs are decoded by nvImageCodec" in line for line in served.logged) == 1


def test_the_most_pixels_are_those_of_the_config(served: Any) -> None:
    (refused,) = answers(served.load("exact", limit=16), [("a pixel", "420")])
    assert '{"1": "DecompressionBombError: Image size (61103 pixels) exceeds limit of 16 pixels' in refused.error[0]


def test_a_want_of_memory_blames_no_image(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request may be asked again; one that holds a bad image besides is told of that, as ever."""
    model = served.load("exact")

    def decode(encoded: bytes, *_: Any, **__: Any) -> Any:
        raise BadImage("0 bytes") if not encoded else MemoryError("there is no memory to decode images in")

    monkeypatch.setitem(model.execute.__globals__, "decode_pixels", decode)
    monkeypatch.setitem(model.execute.__globals__, "BadImage", BadImage)
    refused, bad = answers(model, [("420", "grey"), ("420", "nothing")])
    assert refused.error == ("no room at present: there is no memory to decode images in", "unavailable")
    assert bad.error == ('bad rows: {"1": "0 bytes"}', "invalid")
    assert '"reason": "there is no memory to decode images in"' in served.logged[-3]


@pytest.mark.usefixtures("twin")
def test_a_batch_without_a_jpeg_stays_on_the_host(served: Any) -> None:
    (answer,) = answers(served.load("gpu"), [("PNG", "GIF")])
    assert not answer.tensors["pixels"].on_card
    assert served.metrics.counts == {("cnclip_card_images", "exact"): 2}


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(
    ("arguments", "on_card"),
    [
        ([], False),  # which can't be read
        (["tritonserver"], False),
        (["tritonserver", "--pinned-memory-pool-byte-size=268435456"], False),
        (["tritonserver", "--pinned-memory-pool-byte-size=0", "--pinned-memory-pool-byte-size", "1"], False),
        (["tritonserver", "--pinned-memory-pool-byte-size"], False),
        (["tritonserver", "--pinned-memory-pool-byte-size", "0", ""], True),
        (["tritonserver", "--cuda-memory-pool-byte-size=0:1", "--pinned-memory-pool-byte-size=0"], True),
    ],
)
def test_pixels_stay_on_the_card_where_triton_copies_them_right(
    served: Any, arguments: list[str], on_card: bool
) -> None:
    """The same pixels either way, in each request's own rows."""
    served.arguments[:] = arguments
    requests = [("420", "PNG"), ("nothing",), ("grey",)]
    first, _, last = answers(served.load("gpu"), requests)
    exact = answers(served.load("exact"), requests)
    assert np.array_equal(first.tensors["pixels"].array, exact[0].tensors["pixels"].array)
    assert np.array_equal(last.tensors["pixels"].array, exact[2].tensors["pixels"].array)
    assert (first.tensors["pixels"].on_card, last.tensors["pixels"].on_card) == (on_card, on_card)
    told = (
        "pixels go on in its memory" if on_card else "pixels go on by way of the host, since this tritonserver was not"
    )
    assert sum(told in line for line in served.logged) == 1


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(
    ("libraries", "on_card"), [({"libcuda.so.1"}, False), ({"libcuda.so", "libcuda.so.1"}, True), (set(), True)]
)
def test_pixels_leave_the_card_where_triton_does_not_find_the_driver(
    served: Any, monkeypatch: pytest.MonkeyPatch, libraries: set[str], on_card: bool
) -> None:
    monkeypatch.setattr(importlib.import_module("cnclip_handover"), "_loads", libraries.__contains__)
    (answer,) = answers(served.load("gpu"), [("420",)])
    assert answer.tensors["pixels"].on_card == on_card
    assert on_card != any("link one to the other" in line for line in served.logged)


def test_a_full_card_is_counted_and_told_once(served: Any, twin: Twin) -> None:
    model = served.load("gpu")
    exact = answers(served.load("exact"))
    before = len(served.logged)
    for _ in range(3):
        twin.fails = 0
        for one, other in zip(answers(model), exact, strict=True):
            assert one.error == other.error
            assert other.error or np.array_equal(one.tensors["pixels"].array, other.tensors["pixels"].array)
    assert served.metrics.counts[("cnclip_card_failures", "full")] == 3
    told = [line for line in served.logged[before:] if "the card is full" in line]
    assert len(told) == 1
    assert "CUDA_ERROR_OUT_OF_MEMORY" in told[0]
    twin.fails, twin.error = 0, RuntimeError("CUDA_ERROR_LAUNCH_FAILED")
    answers(model)
    assert served.metrics.counts[("cnclip_card_failures", "failed")] == 1
    assert sum("the card failed" in line for line in served.logged) == 1


@pytest.mark.usefixtures("twin")
def test_where_metrics_are_off(served: Any) -> None:
    served.metrics.off = True
    model = served.load("gpu")
    assert answers(model)[0].error is None
    model.finalize()


def test_no_card_is_one_line_before_the_model_is_ready(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(*_: Any, **__: Any) -> None:
        raise CardUnfit("CUDA does not work (CUDAError: CUDA_ERROR_INSUFFICIENT_DRIVER:\n too old)")

    monkeypatch.setattr(cnclip_card, "open_card", unfit)
    with pytest.raises(ModelError) as refused:
        served.load("gpu")
    assert str(refused.value) == (
        "images can't be decoded on a GPU here: CUDA does not work (CUDAError: CUDA_ERROR_INSUFFICIENT_DRIVER: too old); "
        "mend this, or build the repository with --preprocess exact"
    )


def test_this_package_missing_is_one_line_too(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cnclip_card", None)
    with pytest.raises(
        ModelError, match=r"can't be decoded on a GPU here: .*pip install 'cn-clip-triton\[gpu-decode\]', or"
    ):
        served.load("gpu")
    assert answers(served.load("exact"), [("420",)])[0].error is None
