"""Triton's side of image preprocessing: `IMAGE` (encoded images) -> `pixels` (uint8 `[N, R, R, 3]`).

Its output `pillow` is the version of what decodes, for clients that prepare images by themselves.
"""

import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import triton_python_backend_utils as pb_utils

# Triton puts this folder last on the path: what is installed under these names, of whatever version, would be imported
# in place of what was proved with this repository, and is compared with its manifest.
sys.path.insert(0, str(Path(__file__).parent))

from cnclip_bad_rows import NO_ROOM, bad_rows_message
from cnclip_card_log import CardLog
from cnclip_handover import server_arguments, why_by_host
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
        `max_image_pixels`, `decoding` ("exact", "reduced", or "gpu" for JPEGs on the instance's GPU and all else
        exactly), and, if it is there, `image_formats`: Pillow's names of formats to decode beside those that are by
        default, separated by commas.

        Raises:
            pb_utils.TritonModelException: its GPU can't decode as is promised.
        """
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        # Pillow warns of odd metadata; the pixels are what counts. `catch_warnings` is not for threads.
        warnings.simplefilter("ignore")
        self._resolution = int(parameters["resolution"]["string_value"])
        decoding = parameters["decoding"]["string_value"]
        self._reduced = decoding == "reduced"
        groups = config.get("instance_group", [])
        # Triton has written down on which GPUs it makes a group's instances.
        processes = sum(group.get("count", 1) * max(1, len(group.get("gpus", []))) for group in groups) or 1
        threads = int(parameters["threads"]["string_value"]) or decoding_threads(processes)
        self._memory = decoding_memory(threads * processes)
        self._formats = image_formats(parameters.get("image_formats", {}).get("string_value", ""))
        limit_pixels(int(parameters["max_image_pixels"]["string_value"]))
        self._pool = ThreadPoolExecutor(threads)
        pb_utils.Logger.log_info(f"{args['model_name']}: images are resized by {resizer()}")
        self._log = RefusalLog(args["model_name"], pb_utils.Logger.log_warn)
        self._hands_over = False
        self._card_log = CardLog(args["model_name"], args["model_version"], pb_utils) if decoding == "gpu" else None
        self._card = self._open_card(args, threads, groups) if decoding == "gpu" else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request with its pixels, or refuses it, naming its bad rows."""
        batches = [pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1) for request in requests]
        images = [image for batch in batches for image in batch]
        rows, squares = self._prepare(images)
        responses, first = [], 0
        for request, batch in zip(requests, batches, strict=True):
            responses.append(self._respond(request, batch, rows[first : first + batch.size], squares, first))
            first += batch.size
        return responses

    def finalize(self) -> None:
        """Ends the threads, and lets go of the card and the metrics before the process ends."""
        self._pool.shutdown()
        self._card, self._card_log = None, None

    def _prepare(self, images: list[bytes]) -> tuple[list[Any], Any]:
        """Each row's pixels, or why it has none; and where the pixels of all are on a card, in whose memory."""
        if self._card is None or self._card_log is None:
            return list(self._pool.map(self._decode, images)), None
        prepared = self._card.prepare(images, lambda others: self._pool.map(self._decode, others))
        self._card_log.tell(prepared)
        return prepared.rows, prepared.squares

    def _decode(self, encoded: bytes) -> Any:
        try:
            return decode_pixels(
                encoded, self._resolution, reduced=self._reduced, formats=self._formats, memory=self._memory
            )
        except (BadImage, MemoryError, OSError) as error:
            return error

    def _respond(self, request: Any, images: Any, rows: list[Any], squares: Any, first: int) -> Any:
        bad = {index: row for index, row in enumerate(rows) if isinstance(row, BadImage)}
        if bad:
            self._log.refused(images, {index: row.details for index, row in bad.items()}, request.request_id())
            message = bad_rows_message({index: str(row) for index, row in bad.items()})
            error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        wants = {index: str(row) for index, row in enumerate(rows) if isinstance(row, (MemoryError, OSError))}
        if wants:  # which says nothing of the images: whoever asks may ask again
            self._log.refused(images, wants, request.request_id())
            message = f"{NO_ROOM}: {next(iter(wants.values()))}"
            error = pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE)
            return pb_utils.InferenceResponse(error=error)
        if squares is None:
            pixels = pb_utils.Tensor("pixels", np.stack(rows))
        elif self._hands_over:
            pixels = pb_utils.Tensor.from_dlpack("pixels", squares.tensor(first, len(rows)))
        else:
            pixels = pb_utils.Tensor("pixels", squares.array(first, len(rows)))
        tensors = [pixels]
        if "pillow" in request.requested_output_names():
            tensors.append(pb_utils.Tensor("pillow", np.full((len(rows), 1), PIL.__version__.encode(), np.object_)))
        return pb_utils.InferenceResponse(tensors)

    def _open_card(self, args: dict[str, str], threads: int, groups: list[Any]) -> Any:
        """This instance's GPU.

        Raises:
            pb_utils.TritonModelException: it can't decode as is promised.
        """
        try:
            from cnclip_card import CardUnfit, open_card
        except ImportError as error:
            raise pb_utils.TritonModelException(
                f"images can't be decoded on a GPU here: {error}; pip install 'cn-clip-triton[gpu-decode]', or build "
                "the repository with --preprocess exact"
            ) from None
        try:
            card = open_card(
                self._resolution,
                self._formats,
                number=int(args["model_instance_device_id"]),
                threads=threads,
                processes=sum(group.get("count", 1) for group in groups) or 1,
            )
        except CardUnfit as error:
            raise pb_utils.TritonModelException(str(error)) from None
        why = why_by_host(server_arguments())
        self._hands_over = not why
        way = f"pixels go on by way of the host, since {why}" if why else "pixels go on in its memory"
        pb_utils.Logger.log_info(f"{args['model_name']}: {card.about}; {way}")
        return card
