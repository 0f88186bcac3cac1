"""Triton's side of tokenisation: `TEXT` (UTF-8) -> `text` (int32 ids `[N, length]`)."""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from cnclip_bad_rows import bad_rows_message
from cnclip_refusal_log import RefusalLog
from cnclip_token_ids import BadText, TokenIds


class TritonPythonModel:
    """Tokenises; the texts of all waiting requests are padded alike, so that the encoder can batch them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads `context_length` and `length_step` from the model's parameters and `vocab.txt` beside this file."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._token_ids = TokenIds(
            Path(__file__).with_name("vocab.txt"),
            *(int(parameters[name]["string_value"]) for name in ("context_length", "length_step")),
        )
        self._log = RefusalLog(args["model_name"], pb_utils.Logger.log_warn)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request with its token ids, or refuses it, naming its bad rows."""
        rows: list[list[int]] = []  # of the requests without a bad row, one after another
        spans: list[tuple[int, int] | dict[int, str]] = []  # of each request: where its rows are, or what is bad
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            encoded, bad = self._encode(texts)
            if bad:
                self._log.refused(texts, bad, request.request_id())
            spans.append(bad or (len(rows), len(rows) + len(encoded)))
            if not bad:
                rows.extend(encoded)
        padded = self._token_ids.pad(rows)
        return [self._respond(span, padded) for span in spans]

    def _encode(self, texts: Any) -> tuple[list[list[int]], dict[int, str]]:
        encoded: list[list[int]] = []
        bad: dict[int, str] = {}
        for index, text in enumerate(texts):
            try:
                encoded.append(self._token_ids.encode_utf8(text))
            except BadText as error:
                bad[index] = str(error)
        return encoded, bad

    def _respond(self, span: tuple[int, int] | dict[int, str], padded: Any) -> Any:
        if isinstance(span, dict):
            error = pb_utils.TritonError(bad_rows_message(span), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text", padded[slice(*span)])])
