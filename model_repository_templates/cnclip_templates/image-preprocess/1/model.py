"""Triton's side of image preprocessing: `IMAGE` (encoded images) -> `pixels` (uint8 `[N, R, R, 3]`)."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cnclip_bad_rows import bad_rows_message
from cnclip_pixels import BadImage, decode_pixels


class TritonPythonModel:
    """Decodes and resizes; the rows of all waiting requests share one pool of threads, since Pillow frees the GIL."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads `resolution` and `threads` (0 for as many as cores) from the model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._resolution = int(parameters["resolution"]["string_value"])
        threads = int(parameters["threads"]["string_value"]) or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request with its pixels, or refuses it, naming its bad rows."""
        batches = [pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy() for request in requests]
        decoded = self._pool.map(self._decode, [image for batch in batches for image in batch.reshape(-1)])
        return [self._respond([next(decoded) for _ in range(batch.size)]) for batch in batches]

    def finalize(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _decode(self, encoded: bytes) -> Any:
        try:
            return decode_pixels(encoded, self._resolution)
        except BadImage as error:
            return error

    def _respond(self, rows: list[Any]) -> Any:
        bad = {index: str(row) for index, row in enumerate(rows) if isinstance(row, BadImage)}
        if bad:
            error = pb_utils.TritonError(bad_rows_message(bad), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(rows))])
