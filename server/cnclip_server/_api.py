"""Asks a running tritonserver by HTTP: whether it is ready, what it serves, how it does."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cnclip_server._errors import ServerError


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
    method: str, host: str, port: int, path: str, timeout_s: float, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """One HTTP request on its own connection: an open one would make tritonserver wait when it stops.

    Not urllib: that would take a proxy from the environment.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read()
