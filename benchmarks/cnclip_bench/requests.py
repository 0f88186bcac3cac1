"""What a load sends: each request the next items of a circle."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import count, cycle
from typing import TYPE_CHECKING, Any

from cnclip_bench.load import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from cnclip_builder.tensors import Tower
    from cnclip_client import Client

__all__ = ["encode", "to_encoder", "to_ensemble"]


def encode(
    client: Client, tower: Tower, items: Sequence[Any], batch_size: int | None = None
) -> npt.NDArray[np.float32]:
    """Has the client encode images or texts, by default in batches of its own choice; gives float32 `[N, D]`."""
    encoded = client.encode_images if tower == "image" else client.encode_texts
    return encoded(items, batch_size=batch_size)


def to_ensemble(client: Client, tower: Tower, items: Sequence[Any], batch_size: int) -> Request:
    """Gives requests of so many encoded images or texts, by the client."""
    turn = count()

    def request() -> None:
        first = next(turn) * batch_size
        given = [items[(first + offset) % len(items)] for offset in range(batch_size)]
        encode(client, tower, given, batch_size)

    return request


def to_encoder(url: str, model: str, rows: npt.NDArray[Any], sizes: Sequence[int]) -> Request:
    """Gives requests of ready rows to an encoder alone, in turns of these sizes; a connection for each thread.

    Args:
        url: The server's gRPC address.
        model: The encoder.
        rows: As many as the largest request has: pixels uint8 `[N, R, R, 3]`, or token ids int32 `[N, L]`.
        sizes: Rows of one request after another.
    """
    import tritonclient.grpc as grpc
    from cnclip_builder.tensors import TENSORS
    from tritonclient.utils import np_to_triton_dtype

    own, turns, lock = threading.local(), cycle(sizes), threading.Lock()
    names = TENSORS["text" if rows.ndim == 2 else "image"]
    inputs = {}
    for size in set(sizes):
        tensor = grpc.InferInput(names.served_input, [size, *rows.shape[1:]], np_to_triton_dtype(rows.dtype))
        tensor.set_data_from_numpy(rows[:size])
        inputs[size] = tensor

    def request() -> None:
        if not hasattr(own, "server"):
            own.server = grpc.InferenceServerClient(url)
        with lock:
            size = next(turns)
        wanted = [grpc.InferRequestedOutput(names.normalised)]
        own.server.infer(model, [inputs[size]], outputs=wanted)

    return request
