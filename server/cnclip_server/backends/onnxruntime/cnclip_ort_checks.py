"""Does the ONNX model fit its `config.pbtxt`? The same refusals as Triton's C++ onnxruntime backend.

The rules and their order are those of `ModelInstanceState::ValidateInputs`, `ValidateOutputs` and
`CompareDimsSupported` in triton-inference-server/onnxruntime_backend; the sentences are ours, close enough to
be recognised and with the way out at their end. A repository that passes here is meant to load there, and the
reverse.

Runs inside the Python backend's stub: only the standard library is imported, so tests may import it anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WILDCARD = -1

# ONNX Runtime's name of a tensor's type -> the data type of config.pbtxt. bfloat16, complex and the 4- and
# 8-bit floats are missing on purpose: Triton's backend does not serve them either, and numpy has no bfloat16.
TRITON_TYPES: Mapping[str, str] = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}

_SERVED_ELSEWHERE = "serve this model with NVIDIA's container, whose C++ backend can"


class LoadError(Exception):
    """The model cannot be served as its configuration asks; the message says why and what to change."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output as the ONNX file declares it.

    Attributes:
        name: The tensor's name.
        onnx_type: ONNX Runtime's name of its type, such as `tensor(float)`.
        dims: Its shape, with -1 for every symbolic or unknown dimension; empty for a scalar or an unknown
        rank.
    """

    name: str
    onnx_type: str
    dims: tuple[int, ...]

    @property
    def data_type(self) -> str:
        """The data type of config.pbtxt, or ONNX Runtime's own name where Triton has none."""
        return TRITON_TYPES.get(self.onnx_type, self.onnx_type)


@dataclass(frozen=True)
class Signature:
    """What the ONNX file takes and gives, each by tensor name."""

    inputs: Mapping[str, TensorInfo]
    overridable_initializers: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, session: Any) -> Signature:
        """Reads the signature of an `onnxruntime.InferenceSession`."""
        return cls(
            inputs=_infos(session.get_inputs()),
            overridable_initializers=_infos(session.get_overridable_initializers()),
            outputs=_infos(session.get_outputs()),
        )


def _infos(arguments: Sequence[Any]) -> dict[str, TensorInfo]:
    """`NodeArg`s of ONNX Runtime by name; symbolic dimensions come as a name or None, and become -1."""
    return {
        argument.name: TensorInfo(
            name=argument.name,
            onnx_type=argument.type,
            dims=tuple(dim if isinstance(dim, int) else WILDCARD for dim in argument.shape),
        )
        for argument in arguments
    }


def check_features(config: Mapping[str, Any]) -> None:
    """Refuses what the C++ backend can do and this stand-in cannot.

    Args:
        config: The model's configuration, as Triton hands it to the Python backend (parsed JSON).

    Raises:
        LoadError: The configuration asks for sequences, ragged batches or batch inputs and outputs.
    """
    asked = [name for name in ("sequence_batching", "batch_input", "batch_output") if config.get(name)]
    asked += [f"allow_ragged_batch of input '{io['name']}'" for io in config["input"] if io.get("allow_ragged_batch")]
    if asked:
        raise LoadError(
            f"unable to load model '{config['name']}', the CPU stand-in for the onnxruntime backend does not "
            f"do {', '.join(asked)}: {_SERVED_ELSEWHERE}"
        )


def check_signature(config: Mapping[str, Any], signature: Signature) -> None:
    """Compares the model with its configuration, inputs first.

    Args:
        config: The model's configuration (parsed JSON).
        signature: What the ONNX file declares.

    Raises:
        LoadError: They differ in count, names, types or dims, or the model has no batch axis to batch on.
    """
    model = config["name"]
    required = [io for io in config["input"] if not io.get("optional")]
    if len(signature.inputs) != len(required):
        raise LoadError(
            f"unable to load model '{model}', configuration expects {len(required)} inputs, model provides "
            f"{len(signature.inputs)}: {_listed(signature.inputs)}; list these as the configuration's inputs"
        )
    inputs = {**signature.inputs, **signature.overridable_initializers}
    for io in config["input"]:
        if io.get("optional") and config["max_batch_size"] > 0:
            raise LoadError(
                f"unable to load model '{model}', optional input '{io['name']}' is not supported for models "
                "that support batching; make it required, or set max_batch_size: 0"
            )
        _check_tensor(config, io, inputs, kind="input")
    for io in config["output"]:
        _check_tensor(config, io, signature.outputs, kind="output")


def _check_tensor(
    config: Mapping[str, Any], io: Mapping[str, Any], tensors: Mapping[str, TensorInfo], *, kind: str
) -> None:
    """Compares one configured input or output with the tensors of the model: name, then type, then dims."""
    model, name, data_type = config["name"], io["name"], io["data_type"]
    tensor = tensors.get(name)
    if tensor is None:
        raise LoadError(
            f"unable to load model '{model}', unexpected inference {kind} '{name}', allowed {kind}s are: "
            f"{_listed(tensors)}; name one of these in the configuration"
        )
    if data_type not in TRITON_TYPES.values():
        raise LoadError(
            f"unsupported datatype {data_type} for {kind} '{name}' for model '{model}'; export it with a "
            "type that Triton's onnxruntime backend serves, such as TYPE_FP16 or TYPE_FP32"
        )
    if data_type != tensor.data_type:
        raise LoadError(
            f"unable to load model '{model}', configuration expects datatype {data_type} for {kind} "
            f"'{name}', model provides {tensor.data_type}; write the model's type in the configuration"
        )
    dims = configured_dims(io)
    if tensor.dims:
        _check_dims(model, tensor, dims, max_batch_size=config["max_batch_size"], exact=kind == "output")
    elif any(dim != 1 for dim in dims):
        raise LoadError(
            f"unable to load model '{model}', scalar tensor '{name}', should only provide 1 in the model "
            "configuration when the model doesn't support batching. Model configuration provided: "
            f"{_shape(dims)}; write dims: [ 1 ]"
        )


def _check_dims(model: str, tensor: TensorInfo, dims: tuple[int, ...], *, max_batch_size: int, exact: bool) -> None:
    """Compares shapes: a wildcard of the model takes any input, an output's must be configured as one."""
    expected = dims
    complete = ""
    if max_batch_size > 0:
        if tensor.dims[0] != WILDCARD:
            raise LoadError(
                f"model '{model}', tensor '{tensor.name}': for the model to support batching the shape "
                "should have at least 1 dimension and the first dimension must be -1; but shape expected by "
                f"the model is {_shape(tensor.dims)}; export the model with a dynamic batch axis, or set "
                "max_batch_size: 0"
            )
        expected = (WILDCARD, *dims)
        complete = "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
    fits = len(tensor.dims) == len(expected) and all(
        ours == theirs or (theirs == WILDCARD and not exact) for theirs, ours in zip(tensor.dims, expected, strict=True)
    )
    if not fits:
        raise LoadError(
            f"model '{model}', tensor '{tensor.name}': the model expects {len(tensor.dims)} dimensions "
            f"(shape {_shape(tensor.dims)}) but the model configuration specifies {len(expected)} dimensions "
            f"({complete}shape {_shape(expected)}); make the configuration's dims those of the model"
        )


def configured_dims(io: Mapping[str, Any]) -> tuple[int, ...]:
    """The dims that the model itself sees: those of `reshape` where the configuration has one."""
    reshape = io.get("reshape")
    return tuple(int(dim) for dim in (reshape.get("shape", []) if reshape is not None else io["dims"]))


def _listed(names: Mapping[str, TensorInfo]) -> str:
    return ", ".join(sorted(names)) or "none"


def _shape(dims: Sequence[int]) -> str:
    return "[" + ",".join(str(dim) for dim in dims) + "]"
