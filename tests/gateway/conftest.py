"""A gateway on a socket of its own, before a fake Triton; and what asks it as any program would."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cnclip_client import Client, Retry, served_models

from tests.client.conftest import FakeTriton, serve, triton  # noqa: F401 - fixtures

pytest.importorskip("starlette", reason="the extra gateway is not installed")
pytest.importorskip("uvicorn", reason="the extra gateway is not installed")

from cnclip_gateway._app import Gateway
from cnclip_gateway._models import Models
from cnclip_gateway._pages import openapi
from cnclip_gateway._search import Searcher
from cnclip_gateway._serve import listening, server_of
from cnclip_gateway._settings import Settings

QUICK = Retry(attempts=3, connect_attempts=2, deadline_s=2.0, first_delay_s=0.01, max_delay_s=0.05)


class Answer:
    """What came: a status, headers, and the body, which `json` reads."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Of an answer in the API's form of errors, which it has to have."""
        require_schema("Error", self.json)
        error: dict[str, Any] = self.json["error"]
        return error


class Running:
    """A gateway that runs.

    Attributes:
        port: Where.
        url: Its address.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._socket = listening("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = server_of(app, settings, tls=None, verbose=False)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Asks once; what is no bytes is sent as JSON, and an address of an answer's begins at the root."""
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path if path.startswith("/") else f"/{path}", body, headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def embed(self, items: Any, **more: Any) -> Answer:
        """Asks for features of a model, `vit-b-16` unless told."""
        return self.ask("POST", "/v1/embeddings", {"model": "vit-b-16", "input": items, **more})

    def metric(self, name: str) -> float:
        """The value of one of its counters."""
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()
        assert not self._thread.is_alive()


def require_schema(name: str, value: Any) -> None:
    """Holds a value to what the API's description says of it."""
    jsonschema = pytest.importorskip("jsonschema", reason="check-jsonschema is not installed")
    document = {"$ref": f"#/components/schemas/{name}", "components": openapi()["components"]}
    jsonschema.Draft202012Validator(document).validate(value)


def models_of(url: Any, only: str | None = None, **options: Any) -> Models:
    """The models of fake servers."""
    options = {"retry": QUICK, **options}
    return Models(
        lambda slug: Client(url, model=slug, **options), lambda: served_models(url, retry=options["retry"]), only
    )


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts gateways before given servers, and stops them after the test."""
    started: list[Running] = []

    def start(
        url: Any,
        *,
        searched: Any = None,
        pictures: Any = None,
        only: str | None = None,
        client: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Running:
        chosen = Settings(**settings)
        models = models_of(url, only, **(client or {}))
        searcher = None if searched is None else Searcher(searched, models, chosen.preprocess)
        started.append(Running(Gateway(models, chosen, searcher, pictures).app(), chosen))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def gateway(run: Callable[..., Running], triton: FakeTriton) -> Running:  # noqa: F811
    """One with the defaults, before the fake server of `vit-b-16`."""
    return run(triton.url)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small PNG."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path
