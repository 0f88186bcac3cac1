"""Asks a running tritonserver by HTTP: whether it is ready, what it serves, how it does."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cnclip_server._errors import ServerError

# A one of each type of number that models here take.
_ONES = {
    "UINT8": b"\1",
    "INT32": struct.pack("<i", 1),
    "INT64": struct.pack("<q", 1),
    "FP16": struct.pack("<e", 1),
    "FP32": struct.pack("<f", 1),
}
_ANY_SIZE = 8  # of an axis that says none


@dataclass(frozen=True)
class Api:
    """Where a server answers, and what it wants to be shown.

    Attributes:
        host: The address of its HTTP service.
        port: The port of it.
        metrics_host: The address of its metrics.
        metrics_port: The port of them.
        headers: What opens the APIs that its flags restrict.
    """

    host: str
    port: int
    metrics_host: str
    metrics_port: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def is_ready(self) -> bool:
        """Whether it says that all its models are loaded; False if it does not answer within a second."""
        try:
            return self._get("/v2/health/ready", timeout_s=1)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def check_live(self, timeout_s: float) -> None:
        """Returns if it answers at all.

        Raises:
            OSError, http.client.HTTPException: It does not.
        """
        self._get("/v2/health/live", timeout_s=timeout_s)

    def index(self, timeout_s: float) -> list[dict[str, Any]]:
        """The versions of models that are ready, each with its `name` and `version`.

        Raises:
            OSError, http.client.HTTPException: It does not answer.
            ServerError: It does not tell.
        """
        status, body = _request("POST", self.host, self.port, "/v2/repository/index", timeout_s, self.headers)
        if status != http.client.OK:
            raise ServerError(f"{self.host}:{self.port} does not list its models (HTTP {status}); see its log")
        try:
            entries: list[dict[str, Any]] = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{self.host}:{self.port} does not list its models ({error}); see its log") from error
        return [entry for entry in entries if entry.get("state") == "READY"]

    def is_model_ready(self, name: str, version: str, timeout_s: float) -> bool:
        """Whether it calls a version of a model ready when asked for it; where it must not tell, it is."""
        status, _ = self._get(f"/v2/models/{quote(name)}/versions/{version}/ready", timeout_s)
        return status in (http.client.OK, http.client.FORBIDDEN)

    def infers(self, name: str, version: str, timeout_s: float) -> bool:
        """Whether a version of a model answers a request of one row, all ones, where its inputs are numbers.

        Raises:
            OSError, ValueError, http.client.HTTPException: It does not answer, or not as Triton does.
        """
        place = f"/v2/models/{quote(name)}/versions/{version}"
        status, body = self._get(place, timeout_s)
        inputs = json.loads(body).get("inputs", []) if status == http.client.OK else []
        if not inputs or any(tensor["datatype"] not in _ONES for tensor in inputs):
            return False
        described, content = [], b""
        for tensor in inputs:
            # One row, and of a text so many tokens as plans take too.
            shape = [size if size > 0 else _ANY_SIZE if at else 1 for at, size in enumerate(tensor["shape"])]
            ones = _ONES[tensor["datatype"]] * math.prod(shape)
            one = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape}
            described.append({**one, "parameters": {"binary_data_size": len(ones)}})
            content += ones
        header = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        headers = {**self.headers, "Inference-Header-Content-Length": str(len(header))}
        status, _ = _request("POST", self.host, self.port, f"{place}/infer", timeout_s, headers, header + content)
        return status == http.client.OK

    def metrics(self, timeout_s: float) -> str:
        """Its Prometheus metrics; empty if they are turned off."""
        try:
            status, body = _request("GET", self.metrics_host, self.metrics_port, "/metrics", timeout_s)
        except ConnectionRefusedError:
            return ""
        return body.decode() if status == http.client.OK else ""

    def _get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        return _request("GET", self.host, self.port, path, timeout_s, self.headers)


def _request(
    method: str,
    host: str,
    port: int,
    path: str,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """One HTTP request on its own connection: an open one would make tritonserver wait when it stops.

    Not urllib: that would take a proxy from the environment.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read()
