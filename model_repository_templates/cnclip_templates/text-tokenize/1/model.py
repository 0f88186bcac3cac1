"""Triton's side of tokenisation: `TEXT` (UTF-8) -> `text` (int32 ids `[N, length]`)."""

import json
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

# Triton puts this folder last on the path: what is installed under these names, of whatever version, would be imported
# in place of what was proved with this repository, and is compared with its manifest.
sys.path.insert(0, str(Path(__file__).parent))

from cnclip_bad_rows import bad_rows_message
from cnclip_refusal_log import RefusalLog
from cnclip_token_ids import BadText, TokenIds, decoded


class TritonPythonModel:
    """Tokenises; the texts of all waiting requests are padded alike, so that the encoder can batch them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads `context_length` and `lengths` from the model's parameters and `vocab.txt` beside this file."""
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        lengths = [int(length) for length in parameters["lengths"].split(",")]
        self._token_ids = TokenIds(Path(__file__).with_name("vocab.txt"), int(parameters["context_length"]), lengths)
        self._log = RefusalLog(args["model_name"], pb_utils.Logger.log_warn)
        # Long captions are everyday, and nothing is wrong with them: fewer lines, and none of those for refused items.
        self._cut_log = RefusalLog(args["model_name"], pb_utils.Logger.log_info, lines_a_second=0.1)
        self._metrics, self._cut_texts = _counter(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers every request with its token ids, or refuses it, naming its bad rows."""
        rows: list[list[int]] = []  # of the requests without a bad row, one after another
        spans: list[tuple[int, int] | dict[int, str]] = []  # of each request: where its rows are, or what is bad
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            encoded, bad = self._encode(texts, request.request_id())
            if bad:
                self._log.refused(texts, bad, request.request_id())
            spans.append(bad or (len(rows), len(rows) + len(encoded)))
            if not bad:
                rows.extend(encoded)
        padded = self._token_ids.pad(rows)
        return [self._respond(span, padded) for span in spans]

    def finalize(self) -> None:
        """Lets go of the metric before the process ends."""
        self._cut_texts = self._metrics = None

    def _encode(self, texts: Any, request_id: str) -> tuple[list[list[int]], dict[int, str]]:
        encoded: list[list[int]] = []
        bad: dict[int, str] = {}
        cut: list[int] = []
        for index, text in enumerate(texts):
            try:
                ids, is_cut = self._token_ids.encode_and_tell(decoded(text))
            except BadText as error:
                bad[index] = str(error)
            else:
                encoded.append(ids)
                if is_cut:
                    cut.append(index)
        if cut and not bad:  # a refused request is sent again without its bad rows
            if self._cut_texts is not None:
                self._cut_texts.increment(len(cut))
            self._cut_log.cut(texts, cut, request_id, self._token_ids.context_length)
        return encoded, bad

    def _respond(self, span: tuple[int, int] | dict[int, str], padded: Any) -> Any:
        if isinstance(span, dict):
            error = pb_utils.TritonError(bad_rows_message(span), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text", padded[slice(*span)])])


def _counter(model: str, version: str) -> tuple[Any, Any]:
    """The metric that counts cut texts, behind what keeps it alive; None where a server's metrics are turned off."""
    try:
        family = pb_utils.MetricFamily(
            name="cnclip_texts_cut",
            description="Texts of which tokens past the context length were cut off",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        return family, family.Metric(labels={"model": model, "version": version})
    except pb_utils.TritonModelException:
        return None, None
