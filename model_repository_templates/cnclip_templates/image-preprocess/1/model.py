"""Triton's side of image preprocessing: `IMAGE` (encoded images) -> `pixels` (uint8 `[N, R, R, 3]`)."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cnclip_bad_rows import bad_rows_message
from cnclip_pixels import BadImage, decode_pixels, limit_pixels
from cnclip_refusal_log import RefusalLog


class TritonPythonModel:
    """Decodes and resizes; the rows of all waiting requests share one pool of threads, since Pillow frees the GIL."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the model's parameters.

        `resolution`, `threads` (0 for as many as cores), `max_image_pixels`, and `decoding`: "exact" or "reduced".
        """
        parameters = json.loads(args["model_config"])["parameters"]
        self._resolution = int(parameters["resolution"]["string_value"])
        self._reduced = parameters["decoding"]["string_value"] == "reduced"
        threads = int(parameters["threads"]["string_value"]) or len(os.sched_getaffinity(0))
        limit_pixels(int(parameters["max_image_pixels"]["string_value"]))
        self._pool = ThreadPoolExecutor(threads)
        self._log = RefusalLog(args["model_name"], pb_utils.Logger.log_warn)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request with its pixels, or refuses it, naming its bad rows."""
        batches = [pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy() for request in requests]
        decoded = self._pool.map(self._decode, [image for batch in batches for image in batch.reshape(-1)])
        return [
            self._respond(request, batch.reshape(-1), [next(decoded) for _ in range(batch.size)])
            for request, batch in zip(requests, batches, strict=True)
        ]

    def finalize(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _decode(self, encoded: bytes) -> Any:
        try:
            return decode_pixels(encoded, self._resolution, reduced=self._reduced)
        except BadImage as error:
            return error

    def _respond(self, request: Any, images: Any, rows: list[Any]) -> Any:
        bad = {index: str(row) for index, row in enumerate(rows) if isinstance(row, BadImage)}
        if bad:
            self._log.refused(images, bad, request.request_id())
            error = pb_utils.TritonError(bad_rows_message(bad), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(rows))])
