"""How the stand-in answers the requests of one batch, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


def _config(outputs: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": outputs,
        **changes,
    }


Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}
ROWS = {"name": "rows", "data_type": "TYPE_INT64", "dims": [1]}


@pytest.fixture
def load(stand_in: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """Loads a model into the stand-in, as Triton's stub would."""

    def loaded(proto: Any, config: dict[str, Any]) -> Any:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(proto, folder / "model.onnx")
        model = stand_in.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path / "m"),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        return model

    return loaded


@pytest.fixture
def ask(stand_in: ModuleType) -> Callable[..., Any]:
    def request(x: Any, outputs: tuple[str, ...] = ("y", "rows")) -> Any:
        return stand_in.pb_utils.Request({"x": np.asarray(x)}, outputs)

    return request


def _row(rows: int, length: int, start: float) -> Any:
    return (start + np.arange(rows * length, dtype=np.float32)).reshape(rows, length)


def test_equal_shapes_share_a_run_and_others_have_their_own(load: Any, ask: Any, nets: Any) -> None:
    model = load(nets.rows_of_run(), _config([Y, ROWS]))
    inputs = [_row(1, 3, 0), _row(2, 5, 10), _row(3, 3, 20), _row(1, 5, 30), _row(1, 4, 40)]
    answers = model.execute([ask(x) for x in inputs])
    for x, answer in zip(inputs, answers, strict=True):
        assert answer.error is None
        np.testing.assert_array_equal(answer.arrays["y"], x)
    run_of = [answer.arrays["rows"].ravel().tolist() for answer in answers]
    assert run_of == [[4], [3, 3], [4, 4, 4], [3], [1]]


def test_only_requested_outputs(load: Any, ask: Any, nets: Any) -> None:
    model = load(nets.rows_of_run(), _config([Y, ROWS]))
    answers = model.execute([ask(_row(1, 2, 0), ("y",)), ask(_row(1, 2, 0), ("rows",)), ask(_row(1, 2, 0))])
    assert [sorted(answer.arrays) for answer in answers] == [["y"], ["rows"], ["rows", "y"]]


def test_a_failing_group_fails_its_own_requests(load: Any, ask: Any, nets: Any) -> None:
    """Rows of 3 can be reshaped to (N, 3); rows of 4 cannot."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [0, 3])
    value = helper.make_tensor_value_info
    proto = nets.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", TensorProto.FLOAT, ["N", "L"])],
        [value("y", TensorProto.FLOAT, ["N", 3])],
        [shape],
    )
    model = load(proto, _config([{**Y, "dims": [3]}]))
    good, bad, last = model.execute(
        [ask(_row(1, 3, 0), ("y",)), ask(_row(1, 4, 0), ("y",)), ask(_row(2, 3, 5), ("y",))]
    )
    np.testing.assert_array_equal(good.arrays["y"], _row(1, 3, 0))
    np.testing.assert_array_equal(last.arrays["y"], _row(2, 3, 5))
    assert bad.error.code == "internal"
    assert "onnx runtime error" in bad.error.message


def test_a_request_without_sense_fails_none_that_shares_its_run(load: Any, ask: Any, nets: Any) -> None:
    """As token ids that no vocabulary has: they are somebody else's, and of the same shape."""
    value = helper.make_tensor_value_info
    proto = nets.model(
        [
            helper.make_node("Gather", ["table", "i"], ["y"]),
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        ][::-1],
        [value("x", TensorProto.FLOAT, ["N", "L"])],
        [value("y", TensorProto.FLOAT, ["N", "L"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [4], [0, 10, 20, 30])],
    )
    first, bad, last = load(proto, _config([Y])).execute(
        [ask(np.array([ids], np.float32), ("y",)) for ids in ([1, 2], [1, 9], [3, 0])]
    )
    np.testing.assert_array_equal(first.arrays["y"], [[10, 20]])
    np.testing.assert_array_equal(last.arrays["y"], [[30, 0]])
    assert (bad.error.code, "out of data bounds" in bad.error.message) == ("internal", True)


def test_an_output_that_loses_the_batch(load: Any, ask: Any, nets: Any) -> None:
    value = helper.make_tensor_value_info
    proto = nets.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", TensorProto.FLOAT, ["N", "L"])],
        [value("y", TensorProto.FLOAT, ["M", 1])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1])],
    )
    answers = load(proto, _config([{**Y, "dims": [1]}])).execute([ask(_row(2, 3, 0), ("y",))])
    assert "output 'y' has 6 rows for a batch of 2" in answers[0].error.message


def test_strings(load: Any, ask: Any, nets: Any) -> None:
    config = _config(
        [{**Y, "data_type": "TYPE_STRING"}], input=[{"name": "x", "data_type": "TYPE_STRING", "dims": [-1]}]
    )
    model = load(nets.identity(element=TensorProto.STRING), config)
    texts = [["一只猫".encode(), b""], [b"b'x'", "𠮷".encode()]]
    bad = np.array([[b"\xff", b""]], dtype=np.object_)
    first, refused, second = model.execute(
        [
            ask(np.array([texts[0]], dtype=np.object_), ("y",)),
            ask(bad, ("y",)),
            ask(np.array([texts[1]], object), ("y",)),
        ]
    )
    assert first.arrays["y"].tolist() == [["一只猫", ""]]
    assert second.arrays["y"].tolist() == [["b'x'", "𠮷"]]
    assert refused.error.code == "invalid"
    assert "input 'x' holds a string that is not UTF-8" in refused.error.message


def test_without_batching_every_request_has_its_own_run(load: Any, ask: Any, nets: Any) -> None:
    two = [{**Y, "dims": [-1, -1]}, {**ROWS, "dims": [-1, 1]}]
    config = _config(two, max_batch_size=0, input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, -1]}])
    answers = load(nets.rows_of_run(), config).execute([ask(_row(2, 3, 0)), ask(_row(2, 3, 9))])
    assert [answer.arrays["rows"].ravel().tolist() for answer in answers] == [[2, 2], [2, 2]]
    np.testing.assert_array_equal(answers[1].arrays["y"], _row(2, 3, 9))


def test_scalars_are_one_element_outside(load: Any, ask: Any, nets: Any) -> None:
    one = [{**Y, "dims": [1]}]
    config = _config(one, max_batch_size=0, input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}])
    answers = load(nets.identity(shape=[]), config).execute([ask(np.array([4], np.float32), ("y",))])
    assert answers[0].arrays["y"].tolist() == [4.0]


def test_load_errors_are_the_models(load: Any, stand_in: ModuleType, nets: Any) -> None:
    with pytest.raises(stand_in.pb_utils.TritonModelException, match="first dimension must be -1"):
        load(nets.identity(shape=[1, "L"]), _config([Y]))


def test_shared_sessions_are_logged(load: Any, stand_in: ModuleType, nets: Any) -> None:
    load(nets.identity(), _config([Y], parameters={"share_session_between_instances": {"string_value": "true"}}))
    assert "no effect here" in stand_in.pb_utils.warnings[0]


def test_auto_complete_leaves_the_configuration(stand_in: ModuleType) -> None:
    given = object()
    assert stand_in.TritonPythonModel.auto_complete_config(given) is given


def test_rows_on_a_device_are_run_where_they_are(
    load: Any, stand_in: ModuleType, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share runs among each other, in their order, beside those of the host."""
    model = load(nets.rows_of_run(), _config([Y, ROWS]))
    inputs = [_row(1, 3, 0), _row(2, 3, 10), _row(2, 3, 20), _row(3, 3, 30), _row(1, 5, 40)]
    at = [False, True, False, True, True]
    joins: list[list[int]] = []
    devices = stand_in.devices
    copy = devices._copy

    def counted(arrays: Any, address: int) -> None:
        joins.append([array.shape[0] for array in arrays])
        copy(arrays, address)

    monkeypatch.setattr(devices, "_copy", counted)
    requests = [
        stand_in.pb_utils.Request({"x": stand_in.pb_utils.DeviceTensor("x", x) if there else x}, ("y", "rows"))
        for x, there in zip(inputs, at, strict=True)
    ]
    answers = model.execute(requests)
    for x, answer in zip(inputs, answers, strict=True):
        assert answer.error is None
        np.testing.assert_array_equal(answer.arrays["y"], x)
    assert [answer.arrays["rows"].ravel().tolist() for answer in answers] == [[3], [5, 5], [3, 3], [5, 5, 5], [1]]
    assert joins == [[2, 3]]


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((2, 6), np.float32)[:, ::2], "has gaps between its elements"),
        (np.zeros((2, 3), np.complex64), "has a type that is not handed on"),
    ],
)
def test_an_odd_tensor_on_a_device_fails_its_own_request(
    load: Any, stand_in: ModuleType, ask: Any, nets: Any, array: Any, complaint: str
) -> None:
    model = load(nets.rows_of_run(), _config([Y, ROWS]))
    odd = stand_in.pb_utils.Request({"x": stand_in.pb_utils.DeviceTensor("x", array)}, ("y",))
    good, bad = model.execute([ask(_row(1, 3, 0), ("y",)), odd])
    np.testing.assert_array_equal(good.arrays["y"], _row(1, 3, 0))
    assert complaint in bad.error.message
