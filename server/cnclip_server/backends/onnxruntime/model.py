"""The CPU stand-in for Triton's C++ onnxruntime backend, as a Python-based backend.

The tritonserver inside the nvidia-pytriton wheel has no onnxruntime backend. Triton finds this file as
`onnxruntime/model.py` in its `--backend-directory` and hands it every model whose configuration says
`backend: "onnxruntime"`, so that one model repository runs here and, unchanged, on NVIDIA's container.

Each instance is a process of its own with a session of its own. Triton does the dynamic batching; `execute`
gets the requests of one batch and makes one session run of those whose shapes agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from cnclip_server.backends.onnxruntime import cnclip_ort_checks as checks
    from cnclip_server.backends.onnxruntime import cnclip_ort_device as devices
    from cnclip_server.backends.onnxruntime import cnclip_ort_session as sessions
else:
    # Triton puts this folder on the stub's sys.path; cnclip_server itself may not be importable there.
    import cnclip_ort_checks as checks
    import cnclip_ort_device as devices
    import cnclip_ort_session as sessions


@dataclass(frozen=True)
class _Item:
    """One request of a batch, read.

    Attributes:
        index: The request's place in the batch.
        inputs: Its inputs by name, as the model takes them; those that lie on a GPU stay there.
        rows: The length of its batch axis; 1 where the model does not batch.
        outputs: The names of the outputs that it asks for.
    """

    index: int
    inputs: dict[str, devices.Input]
    rows: int
    outputs: frozenset[str]


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Leaves the configuration as it is: those of this project are complete."""
        return auto_complete_model_config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the session and checks it against the configuration.

        Args:
            args: `model_config` (JSON), `model_repository` (the model's folder), `model_version`,
                `model_instance_kind` and `model_instance_device_id`.

        Raises:
            pb_utils.TritonModelException: The model cannot be served as configured; the server says why.
        """
        config = json.loads(args["model_config"])
        try:
            checks.check_features(config)
            path = sessions.model_file(config, Path(args["model_repository"]) / args["model_version"])
            self._session = sessions.open_session(
                config,
                path,
                kind=args["model_instance_kind"],
                device_id=int(args["model_instance_device_id"]),
            )
            self._run_options = sessions.run_options(config)
            signature = checks.Signature.of(self._session)
            checks.check_signature(config, signature)
            shared = sessions.shares_session(config)
        except checks.LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        if shared:
            pb_utils.Logger.log_warn(
                f"model '{config['name']}': share_session_between_instances has no effect here, every "
                "instance is a process of its own"
            )
        self._batches = config["max_batch_size"] > 0
        self._outputs: list[str] = [io["name"] for io in config["output"]]
        # A scalar has no axes in the model, while Triton's tensors have at least one: [1] outside, () inside.
        self._scalar_inputs = {
            name
            for name, tensor in {**signature.inputs, **signature.overridable_initializers}.items()
            if not tensor.dims
        }
        self._output_dims = {io["name"]: checks.configured_dims(io) for io in config["output"]}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers the requests of one batch, in their order.

        A request that cannot be read, or whose run fails, gets an error of its own; the others are answered.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[object, list[_Item]] = {}
        for index, request in enumerate(requests):
            try:
                item = self._read(index, request)
            except ValueError as error:
                responses[index] = _failed(str(error), pb_utils.TritonError.INVALID_ARG)
            else:
                groups.setdefault(self._group_of(item), []).append(item)
        for group in groups.values():
            for item, answer in zip(group, self._answers(group), strict=True):
                responses[item.index] = answer
        return responses

    def _read(self, index: int, request: Any) -> _Item:
        """Reads one request; numeric inputs stay views into Triton's shared memory.

        Raises:
            ValueError: A string input is not UTF-8.
        """
        inputs: dict[str, devices.Input] = {}
        rows = 1
        for tensor in request.inputs():
            name = tensor.name()
            if not tensor.is_cpu():
                inputs[name] = devices.DeviceArray.of(tensor.to_dlpack(), tensor)
                rows = inputs[name].shape[0] if self._batches else 1
                continue
            array = tensor.as_numpy()
            if self._batches:
                rows = array.shape[0]
            if array.dtype == np.object_:
                array = _decoded(name, array)
            inputs[name] = array.reshape(()) if name in self._scalar_inputs else array
        return _Item(index, inputs, rows, frozenset(request.requested_output_names()))

    def _group_of(self, item: _Item) -> object:
        """A key that items which can share a run have in common: shapes behind the batch axis, and where they lie."""
        if not self._batches:
            return item.index
        return frozenset(
            (name, array.shape[1:], isinstance(array, devices.DeviceArray)) for name, array in item.inputs.items()
        )

    def _answers(self, group: Sequence[_Item]) -> list[Any]:
        """Answers a group. Where its run fails each is run alone: one may hold what no other is to blame for."""
        try:
            return self._answer(group)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own.
            if len(group) == 1:
                return [_failed(f"onnx runtime error: {error}", pb_utils.TritonError.INTERNAL)]
        return [answer for item in group for answer in self._answers([item])]

    def _answer(self, group: Sequence[_Item]) -> list[Any]:
        """Runs the model once on a group and deals the rows of its outputs back out.

        Raises:
            Exception: Whatever ONNX Runtime raises, or ValueError for an output without the batch's rows.
        """
        inputs = {name: _joined([item.inputs[name] for item in group]) for name in group[0].inputs}
        wanted = frozenset().union(*(item.outputs for item in group))
        names = [name for name in self._outputs if name in wanted]
        if any(isinstance(array, devices.DeviceArray) for array in inputs.values()):
            outputs = devices.run(self._session, names, inputs, self._run_options)
        else:
            outputs = self._session.run(names, inputs, self._run_options)
        arrays = dict(zip(names, outputs, strict=True))
        total = sum(item.rows for item in group)
        for name, array in arrays.items():
            if array.ndim == 0:
                arrays[name] = array.reshape(self._output_dims[name])
            elif self._batches and array.shape[0] != total:
                raise ValueError(f"output '{name}' has {array.shape[0]} rows for a batch of {total}")
        answers = []
        start = 0
        for item in group:
            stop = start + item.rows
            tensors = [
                # A slice of the first axis of a contiguous array is contiguous itself: Tensor copies it once.
                pb_utils.Tensor(name, np.ascontiguousarray(array[start:stop] if len(group) > 1 else array))
                for name, array in arrays.items()
                if name in item.outputs
            ]
            answers.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return answers


def _joined(arrays: Sequence[Any]) -> devices.Input:
    """The rows of several requests as one input; a single one's as they are."""
    if isinstance(arrays[0], devices.DeviceArray):
        return devices.joined(arrays)
    joined: devices.Input = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return joined


def _decoded(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bytes -> str, element by element: ONNX Runtime would take `str()` of a bytes object, quotes and all."""
    try:
        texts = [value.decode("utf-8") for value in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"input '{name}' holds a string that is not UTF-8 ({error}); encode it as UTF-8") from None
    return np.array(texts, dtype=np.object_).reshape(array.shape)


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
