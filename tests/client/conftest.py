"""An in-process gRPC server that answers as Triton does for the served models, with faults to order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

SHA = "a" * 64
DIMENSION = 16
# Of cn_clip's vocab.txt.
VOCABULARY_SHA = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"


class Fault(Exception):
    """What a fake server raises to answer with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def features_of(item: bytes, dimension: int = DIMENSION) -> np.ndarray:
    """The made-up un-normalised feature of an item: float32 [D], positive, a function of its bytes alone."""
    digest = hashlib.blake2b(item, digest_size=min(dimension, 64)).digest()
    return np.resize(np.frombuffer(digest, np.uint8).astype(np.float32) + 1, dimension)


@dataclass
class Model:
    name: str
    dimension: int = DIMENSION
    max_batch_size: int = 32
    version: str = "1"
    older: tuple[str, ...] = ()  # versions that are served beside it
    unloaded: tuple[str, ...] = ()  # versions that were served, and are no more
    state: str = "READY"
    reason: str = ""
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def input(self) -> str:
        if self.name.endswith("-text-encoder"):
            return "text"
        return {"image": "IMAGE", "text": "TEXT", "encoder": "pixels", "preprocess": "IMAGE"}[
            self.name.rpartition("-")[2]
        ]

    @property
    def output(self) -> str:
        return "text_features" if self.input in ("TEXT", "text") else "image_features"

    @property
    def dims(self) -> list[int]:
        """A row's, of an image encoder."""
        return [int(self.parameters["resolution"])] * 2 + [3]


_OF_IMAGES = {
    "preferred_batch_size": "8",
    "decoding": "exact",
    "resolution": "32",
    "max_image_pixels": "10000000",
}
_OF_TEXTS = {"preferred_batch_size": "32", "vocabulary_sha256": VOCABULARY_SHA, "text_lengths": "40,52"}


def tower(slug: str, kind: str, **changes: Any) -> Model:
    parameters = {
        "arch": "ViT-B-16",
        "checkpoint_sha256": changes.pop("sha", SHA),
        "logit_scale": "100.0",
        "embedding_size": str(changes.get("dimension", DIMENSION)),
        "context_length": "52",
        "precision": "fp32",
        **(_OF_IMAGES if kind.startswith("image") else _OF_TEXTS),
    } | changes.pop("parameters", {})
    return Model(f"{slug}-{kind}", parameters=parameters, **changes)


def image_encoder(slug: str, resolution: int, **changes: Any) -> Model:
    """What takes an image's pixels; `features_of` them is what it answers."""
    told = {"resolution": str(resolution), "version": "1"}
    return tower(slug, "image-encoder", parameters=told | changes.pop("parameters", {}), **changes)


def text_encoder(slug: str, **changes: Any) -> Model:
    """What takes token ids of cn_clip's vocabulary, padded to 40 or 52; `features_of` them is what it answers."""
    return tower(slug, "text-encoder", parameters={"version": "1"} | changes.pop("parameters", {}), **changes)


def both(slug: str, **changes: Any) -> list[Model]:
    return [tower(slug, "image", **changes), tower(slug, "text", **changes)]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves `models`; an item that starts with `BAD:` is refused with the rest of it as the reason.

    Attributes:
        before_infer: Called with (attempt number from 1, items) of each request; may sleep or raise `Fault`.
        requests: The items of each inference request, in order of arrival.
        most_at_once: The largest number of inference requests seen under way at one time.
        admit: Called with the headers of each call; may raise `Fault`.
    """

    def __init__(
        self, models: list[Model], threads: int = 16, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self._credentials = credentials
        self.admit: Callable[[dict[str, str]], None] = lambda headers: None
        self.models = {model.name: model for model in models}
        self.before_infer: Callable[[int, list[bytes]], None] = lambda attempt, items: None
        self.before_config: Callable[[], None] = lambda: None
        self.index_enabled = True
        self.requests: list[list[bytes]] = []
        self.outputs: list[list[str]] = []
        self.versions: list[str] = []
        self.most_at_once = 0
        self.under_way = 0
        self._lock = threading.Lock()
        self._threads = threads
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listens, on the same port as before where there was one."""
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_metadata_size", 1 << 20),
            ("grpc.so_reuseport", 0),
        ]
        self._pool = futures.ThreadPoolExecutor(self._threads)
        self._server = grpc.server(self._pool, options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        for _ in range(50):
            # The port of a server that has just stopped can be held for a moment yet.
            with contextlib.suppress(RuntimeError):
                address = f"127.0.0.1:{self.port}"
                if self._credentials is None:
                    self.port = self._server.add_insecure_port(address)
                else:
                    self.port = self._server.add_secure_port(address, self._credentials)
                break
            time.sleep(0.02)
        self._server.start()

    def stop(self, *, to_the_last: bool = False) -> None:
        """Drops every connection and request at once.

        Args:
            to_the_last: Whether to wait for what its threads had begun, which counts among `requests` only then.
        """
        self._server.stop(None).wait(5)
        if to_the_last:
            self._pool.shutdown()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def forget(self) -> None:
        self.requests, self.outputs, self.versions, self.most_at_once = [], [], [], 0
        self.before_infer = lambda attempt, items: None

    def _admit(self, context: Any) -> None:
        try:
            self.admit(dict(context.invocation_metadata()))
        except Fault as fault:
            context.abort(fault.code, str(fault))

    def _model(self, request: Any, context: Any) -> Model:
        self._admit(context)
        asks_to_infer = hasattr(request, "model_name")
        name = request.model_name if asks_to_infer else request.name
        version = request.model_version if asks_to_infer else request.version
        model = self.models.get(name)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        if model.state != "READY":
            message = f"Request for unknown model: '{model.name}' has no available versions"
            context.abort(grpc.StatusCode.NOT_FOUND, message)
        if version in model.unloaded:
            message = f"Request for unknown model: '{model.name}' version {version} is not at ready state"
            context.abort(grpc.StatusCode.UNAVAILABLE, message)
        if version not in ("", model.version, *model.older):
            message = f"Request for unknown model: '{model.name}' version {version} is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, message)
        return model

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self.models)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request, context)
        return service_pb2.ModelMetadataResponse(name=model.name, versions=[*model.older, model.version])

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            self.before_config()
        except Fault as fault:
            context.abort(fault.code, str(fault))
        model = self._model(request, context)
        config = model_config_pb2.ModelConfig(name=model.name, max_batch_size=model.max_batch_size)
        for key, value in model.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._admit(context)
        if not self.index_enabled:
            context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header ...")
        entry = service_pb2.RepositoryIndexResponse.ModelIndex
        entries = [entry(name=m.name, version=m.version, state=m.state, reason=m.reason) for m in self.models.values()]
        return service_pb2.RepositoryIndexResponse(models=entries)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request, context)
        with self._lock:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            return self._infer(model, request)
        except Fault as fault:
            context.abort(fault.code, str(fault))
        finally:
            with self._lock:
                self.under_way -= 1

    def _infer(self, model: Model, request: Any) -> Any:
        raw, given = request.raw_input_contents[0], request.inputs[0]
        if model.input in ("pixels", "text"):
            size = len(raw) // given.shape[0]
            items = [raw[start : start + size] for start in range(0, len(raw), size)]
            rows = ("UINT8", model.dims) if model.input == "pixels" else ("INT32", [size // 4])
            expected = (model.input, rows[0], [len(items), *rows[1]])
        else:
            items = [bytes(item) for item in deserialize_bytes_tensor(raw)]
            expected = (model.input, "BYTES", [len(items), 1])
        with self._lock:
            self.requests.append(items)
            self.outputs.append([output.name for output in request.outputs])
            self.versions.append(request.model_version)
            attempt = len(self.requests)
        self.before_infer(attempt, items)
        if [(i.name, i.datatype, list(i.shape)) for i in request.inputs] != [expected]:
            raise Fault(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inputs: {request.inputs}")
        if len(items) > model.max_batch_size:
            raise Fault(grpc.StatusCode.INVALID_ARGUMENT, "inference request batch-size must be <= max")
        bad = {str(row): item[4:].decode() for row, item in enumerate(items) if item.startswith(b"BAD:")}
        if bad:
            prefix = f"in ensemble '{model.name}', Failed to process the request(s): bad rows: "
            raise Fault(grpc.StatusCode.INVALID_ARGUMENT, prefix + json.dumps(bad))
        unnorm = np.stack([features_of(item, model.dimension) for item in items])
        tensors = {
            model.output: unnorm / np.linalg.norm(unnorm, axis=1, keepdims=True),
            f"unnorm_{model.output}": unnorm,
        }
        response = service_pb2.ModelInferResponse(model_name=model.name, model_version=model.version)
        if model.name.endswith("-preprocess"):
            if "pillow" not in model.parameters:
                raise Fault(grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output 'pillow'")
            told = serialize_byte_tensor(np.array([[model.parameters["pillow"].encode()]], np.object_)).item()
            response.outputs.add(name="pillow", datatype="BYTES", shape=[1, 1])
            response.raw_output_contents.append(told)
            return response
        for name in [output.name for output in request.outputs] or list(tensors):
            response.outputs.add(name=name, datatype="FP32", shape=list(unnorm.shape))
            response.raw_output_contents.append(tensors[name].astype(np.float32).tobytes())
        return response


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeTriton]]:
    """Starts fake servers of the given models and stops them after the test."""
    started: list[FakeTriton] = []

    def start(*models: Model, **options: Any) -> FakeTriton:
        started.append(FakeTriton(list(models), **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def triton(serve: Callable[..., FakeTriton]) -> FakeTriton:
    """A fake server of `vit-b-16`."""
    return serve(*both("vit-b-16"))


@pytest.fixture(scope="module")
def shared_triton() -> Iterator[FakeTriton]:
    """One fake server of `vit-b-16` for a module's property tests; they call `forget` themselves."""
    server = FakeTriton(both("vit-b-16"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def fake() -> Any:
    """What tests need of this file."""

    class Namespace:
        features_of = staticmethod(features_of)
        tower = staticmethod(tower)
        both = staticmethod(both)
        image_encoder = staticmethod(image_encoder)
        text_encoder = staticmethod(text_encoder)
        Model = Model
        Fault = Fault
        dimension = DIMENSION
        sha = SHA
        vocabulary_sha = VOCABULARY_SHA

    return Namespace
