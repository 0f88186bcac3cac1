"""Triton's side of image preprocessing: `IMAGE` (encoded images) -> `pixels` (uint8 `[N, R, R, 3]`).

Its output `pillow` is the version of what decodes, for clients that prepare images by themselves.
"""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL
import triton_python_backend_utils as pb_utils
from cnclip_bad_rows import bad_rows_message
from cnclip_pixels import (
    BadImage,
    decode_pixels,
    decoding_memory,
    decoding_threads,
    image_formats,
    limit_pixels,
    resizer,
)
from cnclip_refusal_log import RefusalLog


class TritonPythonModel:
    """Decodes and resizes; the rows of all waiting requests share one pool of threads, since Pillow frees the GIL."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the model's parameters.

        `resolution`, `threads` (0 for this instance's share of the cores that the container may use),
        `max_image_pixels`, `decoding` ("exact" or "reduced"), and, if it is there, `image_formats`: Pillow's names of
        formats to decode beside those that are by default, separated by commas.
        """
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        # Pillow warns of odd metadata; the pixels are what counts. `catch_warnings` is not for threads.
        warnings.simplefilter("ignore")
        self._resolution = int(parameters["resolution"]["string_value"])
        self._reduced = parameters["decoding"]["string_value"] == "reduced"
        processes = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
        threads = int(parameters["threads"]["string_value"]) or decoding_threads(processes)
        self._memory = decoding_memory(threads * processes)
        self._formats = image_formats(parameters.get("image_formats", {}).get("string_value", ""))
        limit_pixels(int(parameters["max_image_pixels"]["string_value"]))
        self._pool = ThreadPoolExecutor(threads)
        pb_utils.Logger.log_info(f"{args['model_name']}: images are resized by {resizer()}")
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
            return decode_pixels(
                encoded, self._resolution, reduced=self._reduced, formats=self._formats, memory=self._memory
            )
        except BadImage as error:
            return error

    def _respond(self, request: Any, images: Any, rows: list[Any]) -> Any:
        bad = {index: row for index, row in enumerate(rows) if isinstance(row, BadImage)}
        if bad:
            self._log.refused(images, {index: row.details for index, row in bad.items()}, request.request_id())
            message = bad_rows_message({index: str(row) for index, row in bad.items()})
            error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        tensors = [pb_utils.Tensor("pixels", np.stack(rows))]
        if "pillow" in request.requested_output_names():
            tensors.append(pb_utils.Tensor("pillow", np.full((len(rows), 1), PIL.__version__.encode(), np.object_)))
        return pb_utils.InferenceResponse(tensors)
