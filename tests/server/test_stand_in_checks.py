"""What the stand-in refuses to load, as Triton's C++ onnxruntime backend does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cnclip_server.backends.onnxruntime.cnclip_ort_checks import (
    LoadError,
    Signature,
    TensorInfo,
    check_features,
    check_signature,
)

FLOAT = "tensor(float)"


def config(**changes: Any) -> dict[str, Any]:
    """x FP32 [-1] -> y FP32 [-1], batched, as Triton hands a configuration over."""
    made: dict[str, Any] = {
        "name": "m",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1], "optional": False}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
    return {**made, **changes}


def signature(
    x: tuple[int, ...] = (-1, -1), y: tuple[int, ...] = (-1, -1), *, element: str = FLOAT, **initializers: TensorInfo
) -> Signature:
    return Signature(
        inputs={"x": TensorInfo("x", element, x)},
        overridable_initializers=initializers,
        outputs={"y": TensorInfo("y", element, y)},
    )


def one(name: str = "x", data_type: str = "TYPE_FP32", dims: list[int] | None = None, **more: Any) -> list[Any]:
    return [{"name": name, "data_type": data_type, "dims": [-1] if dims is None else dims, **more}]


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        pytest.param({}, signature(), id="the same"),
        pytest.param({"input": one(dims=[3])}, signature(), id="a wildcard of the model takes a fixed input"),
        pytest.param({"input": one(dims=[3])}, signature(x=(-1, 3)), id="fixed and fixed"),
        pytest.param({"output": one("y", dims=[3])}, signature(y=(-1, 3)), id="fixed output"),
        pytest.param({"input": one(dims=[2, 3], reshape={"shape": [6]})}, signature(x=(-1, 6)), id="reshaped input"),
        pytest.param({"input": one(dims=[1], reshape={"shape": []})}, signature(x=(-1,)), id="reshaped to no dims"),
        pytest.param({"max_batch_size": 0}, signature((5,), (-1,)) and signature((-1,), (-1,)), id="no batching"),
        pytest.param(
            {"max_batch_size": 0, "input": one(dims=[1]), "output": one("y", dims=[1])}, signature((), ()), id="scalars"
        ),
        pytest.param(
            {"max_batch_size": 0, "input": one() + one("w", dims=[2], optional=True)},
            signature((-1,), (-1,), w=TensorInfo("w", FLOAT, (2,))),
            id="an optional input is an overridable initializer",
        ),
    ],
)
def test_accepted(changes: dict[str, Any], model: Signature) -> None:
    check_features(config(**changes))
    check_signature(config(**changes), model)


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        pytest.param(
            {}, signature(x=(1, -1)), r"'x'.*first dimension must be -1.*model is \[1,-1\]; export", id="fixed batch"
        ),
        pytest.param({}, signature(y=(8, -1)), r"'y'.*first dimension must be -1", id="fixed batch of an output"),
        pytest.param(
            {"input": one(dims=[3])},
            signature(x=(-1, 4)),
            r"expects 2 dimensions \(shape \[-1,4\]\).*specifies 2 dimensions \(an initial batch.*shape \[-1,3\]\)",
            id="other size",
        ),
        pytest.param({}, signature(x=(-1, 4)), r"'x': the model expects", id="a wildcard for a fixed input"),
        pytest.param({}, signature(x=(-1,)), "expects 1 dimensions", id="no dims behind the batch"),
        pytest.param({"input": one(dims=[2, 3])}, signature(), "specifies 3 dimensions", id="other rank"),
        pytest.param(
            {"output": one("y", dims=[3])}, signature(), r"'y': the model expects", id="a fixed output for a wildcard"
        ),
        pytest.param(
            {"max_batch_size": 0, "input": one(dims=[3])},
            signature((4,), (-1,)),
            r"expects 1 dimensions \(shape \[4\]\).*specifies 1 dimensions \(shape \[3\]\)",
            id="no batching, other size",
        ),
        pytest.param(
            {"input": one("z")}, signature(), r"unexpected inference input 'z', allowed inputs are: x", id="input name"
        ),
        pytest.param(
            {"output": one("z")}, signature(), r"unexpected inference output 'z', allowed outputs are: y", id="output"
        ),
        pytest.param({"input": one() + one("w")}, signature(), "expects 2 inputs, model provides 1: x", id="one more"),
        pytest.param({"input": []}, signature(), "expects 0 inputs, model provides 1", id="one missing"),
        pytest.param(
            {"input": one(data_type="TYPE_INT64")},
            signature(),
            "expects datatype TYPE_INT64 for input 'x', model provides TYPE_FP32",
            id="input type",
        ),
        pytest.param(
            {"output": one("y", data_type="TYPE_FP16")}, signature(), "TYPE_FP16 for output 'y'", id="output type"
        ),
        pytest.param(
            {"input": one(data_type="TYPE_BF16")},
            signature(element="tensor(bfloat16)"),
            "unsupported datatype TYPE_BF16 for input 'x'",
            id="bfloat16",
        ),
        pytest.param(
            {},
            signature(element="tensor(bfloat16)"),
            r"datatype TYPE_FP32 for input 'x', model provides tensor\(bfloat16\)",
            id="bfloat16 in the model alone",
        ),
        pytest.param(
            {"input": one() + one("w", optional=True)},
            signature(w=TensorInfo("w", FLOAT, (-1, -1))),
            "optional input 'w' is not supported for models that support batching",
            id="optional with batching",
        ),
        pytest.param(
            {"max_batch_size": 0, "input": one(dims=[2])},
            signature((), (-1,)),
            r"scalar tensor 'x', should only provide 1.*provided: \[2\]",
            id="dims for a scalar",
        ),
    ],
)
def test_refused(changes: dict[str, Any], model: Signature, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        check_signature(config(**changes), model)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sequence_batching": {"max_sequence_idle_microseconds": 1}}, "sequence_batching"),
        ({"batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}]}, "batch_input"),
        ({"batch_output": [{"target_name": ["y"]}]}, "batch_output"),
        ({"input": one(allow_ragged_batch=True)}, "allow_ragged_batch of input 'x'"),
    ],
)
def test_features_of_the_real_backend_alone(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(LoadError, match=f"does not do {named}: serve this model with NVIDIA's container"):
        check_features(config(**changes))


def test_empty_lists_of_features_are_nothing() -> None:
    check_features(config(batch_input=[], batch_output=[]))


def test_symbolic_dimensions_are_wildcards() -> None:
    def argument(name: str, shape: list[Any]) -> SimpleNamespace:
        return SimpleNamespace(name=name, type=FLOAT, shape=shape)

    session = SimpleNamespace(
        get_inputs=lambda: [argument("x", ["N", None, 3])],
        get_overridable_initializers=lambda: [argument("w", [2])],
        get_outputs=lambda: [argument("y", [])],
    )
    read = Signature.of(session)
    assert read.inputs["x"].dims == (-1, -1, 3)
    assert read.overridable_initializers["w"].dims == (2,)
    assert read.outputs["y"].dims == ()
    assert read.outputs["y"].data_type == "TYPE_FP32"
