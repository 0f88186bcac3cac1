"""What travels: the request's tensor, the answer's tensor, and the one form of a refusal for bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

__all__ = ["Tensors", "bad_rows", "features_output", "pixels_of", "rows_input", "strings"]

_BAD_ROWS = "bad rows: "
_NO_REASON = "the server refused it without a reason"


def strings(payloads: Sequence[bytes]) -> NDArray[Any]:
    """Returns payloads as strings, [N, 1]."""
    column = np.empty((len(payloads), 1), dtype=np.object_)
    column[:, 0] = payloads
    return column


def pixels_of(side: int) -> Callable[[Sequence[bytes]], NDArray[Any]]:
    """Returns what makes payloads the pixels of squares: uint8 [N, side, side, 3]."""

    def pixels(payloads: Sequence[bytes]) -> NDArray[Any]:
        return np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), side, side, 3)

    return pixels


class Tensors(NamedTuple):
    """What a model is given and asked for.

    Attributes:
        input: The input's name.
        output: The output's name.
        rows: Makes the input of a request's payloads.
    """

    input: str
    output: str
    rows: Callable[[Sequence[bytes]], NDArray[Any]] = strings


def rows_input(tensors: Tensors, payloads: Sequence[bytes]) -> Any:
    """Returns the input tensor of N payloads."""
    rows = tensors.rows(payloads)
    tensor = InferInput(tensors.input, list(rows.shape), np_to_triton_dtype(rows.dtype))
    # Of strings tritonclient takes 0.4 microseconds a row here, some 3 % of a text's way through this client: no reason
    # to go round its public interface.
    tensor.set_data_from_numpy(rows)
    return tensor


def features_output(result: Any, name: str, rows: int, embedding_size: int) -> NDArray[np.float32]:
    """Returns an answer's features, float32 [rows, D], read-only.

    Raises:
        ValueError: The answer lacks the output, or it has another shape or type.
    """
    features = result.as_numpy(name)
    if features is None:
        raise ValueError(f"it has no output {name}")
    if features.dtype != np.float32 or features.shape != (rows, embedding_size):
        raise ValueError(f"{name} is {features.dtype} {features.shape}, not float32 {(rows, embedding_size)}")
    return features  # type: ignore[no-any-return]


def bad_rows(message: str, rows: int) -> dict[int, str] | None:
    """Reads `bad rows: {"2": "reason"}` out of an INVALID_ARGUMENT message.

    Triton puts a prefix of its own before it and may put words after it. A reason may be empty where many
    rows are bad, as a gRPC message has room for 8 KB only.

    Args:
        message: The message of the refusal.
        rows: Rows in the request that was refused.

    Returns:
        Row of the request -> reason, rising; None where the message says nothing of the kind.
    """
    start = message.find(_BAD_ROWS)
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(message, start + len(_BAD_ROWS))
        reasons = {int(row): str(reason) or _NO_REASON for row, reason in found.items()}
    except (ValueError, AttributeError):
        return None
    if not reasons or not all(0 <= row < rows for row in reasons):
        return None
    return dict(sorted(reasons.items()))
