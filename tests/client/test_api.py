"""The package's face: what it exports, what it imports, its value objects and its errors."""

from __future__ import annotations

import pickle
import subprocess
import sys

import cnclip_client
import numpy as np
import pytest
from cnclip_client import (
    BadFile,
    BadInput,
    Block,
    CheckpointMismatch,
    Client,
    CnclipError,
    JobRefused,
    Limits,
    MissingExtra,
    RequestTimeout,
    Retry,
    Timeout,
    TooManyFailures,
)


def test_all_is_locked() -> None:
    assert cnclip_client.__all__ == [
        "AccessDenied",
        "BadFile",
        "BadInput",
        "Block",
        "CheckpointMismatch",
        "Client",
        "CnclipError",
        "Credentials",
        "ImageItem",
        "JobRefused",
        "Limits",
        "MissingExtra",
        "ModelChanged",
        "ModelInfo",
        "ModelNotFound",
        "ModelNotReady",
        "RequestTimeout",
        "Retry",
        "ServerBusy",
        "ServerError",
        "ServerUnreachable",
        "StoreError",
        "Timeout",
        "Tls",
        "TlsFailed",
        "TooManyFailures",
        "TransportError",
        "preprocess_text",
        "served_models",
    ]
    assert all(hasattr(cnclip_client, name) for name in cnclip_client.__all__)


def test_importing_is_light() -> None:
    script = "import sys, cnclip_client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "cnclip_client" in loaded
    assert not loaded & {
        "typer",
        "click",
        "rich",
        "PIL",
        "torch",
        "onnx",
        "onnxruntime",
        "requests",
        "gevent",
        "ray",
        "pyspark",
    }


def test_the_command_imports_no_cluster_before_it_is_wanted() -> None:
    script = "import sys, cnclip_client._cli; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"ray", "pyspark", "pandas", "pyarrow"}


def test_the_tree_of_errors_is_as_drawn() -> None:
    parents = {
        name: getattr(cnclip_client, name).__base__.__name__
        for name in cnclip_client.__all__
        if isinstance(getattr(cnclip_client, name), type) and issubclass(getattr(cnclip_client, name), Exception)
    }
    assert parents == {
        "CnclipError": "Exception",
        "TransportError": "CnclipError",
        "ServerUnreachable": "TransportError",
        "TlsFailed": "TransportError",
        "ServerBusy": "TransportError",
        "RequestTimeout": "TransportError",
        "AccessDenied": "CnclipError",
        "ModelNotFound": "CnclipError",
        "ModelNotReady": "CnclipError",
        "ModelChanged": "CnclipError",
        "CheckpointMismatch": "CnclipError",
        "BadInput": "CnclipError",
        "BadFile": "CnclipError",
        "StoreError": "CnclipError",
        "MissingExtra": "CnclipError",
        "JobRefused": "CnclipError",
        "TooManyFailures": "CnclipError",
        "ServerError": "CnclipError",
    }
    drawing = sys.modules["cnclip_client._exceptions"].__doc__ or ""
    assert all(name in drawing for name in parents)


def test_errors_survive_pickling() -> None:
    block = Block(0, 2, np.array([1]), np.ones((1, 4), np.float32), {0: "torn"})
    errors: list[CnclipError] = [
        BadFile("line 3 is no JSON; mend it", path="a.jsonl"),
        MissingExtra(module="faiss", extra="search"),
        RequestTimeout("late", url="host:1", timeout_s=3.0),
        CheckpointMismatch(model="m", image_sha256="a", text_sha256="b"),
        JobRefused("is of another job", output="a.npy"),
        TooManyFailures(failures=3, max_errors=2, last="7: torn"),
        BadInput(kind="image", rows={0: "torn"}, encoded=block),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
        assert again.__dict__.keys() == error.__dict__.keys()
    assert pickle.loads(pickle.dumps(errors[-1])).encoded.features.shape == (1, 4)


def test_bad_input_names_the_first_rows_and_the_way_on() -> None:
    block = Block(0, 9, np.arange(4), np.ones((4, 4), np.float32), {})
    error = BadInput(kind="text", rows={row: f"reason {row}" for row in range(4, 9)}, encoded=block)
    assert str(error).startswith("5 of 9 texts cannot be encoded: [4] reason 4; [5] reason 5; [6] reason 6; and 2 more")
    assert "errors='collect'" in str(error)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(Timeout, name) for name in ("connect_s", "request_s")]
    + [(Retry, name) for name in ("attempts", "connect_attempts", "first_delay_s", "max_delay_s", "deadline_s")]
    + [(Limits, name) for name in ("in_flight", "in_flight_bytes", "request_bytes", "item_bytes")],
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_settings_refuse_what_makes_no_sense(cls: type, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}.{name} must be more than 0"):
        cls(**{name: value})


def test_retry_delays_double_up_to_the_cap() -> None:
    retry = Retry(first_delay_s=0.1, max_delay_s=1.0)
    for failures, full in [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (5000, 1.0)]:
        assert full / 2 <= retry.delay_s(failures) <= full


def test_filled_puts_nan_where_an_item_failed() -> None:
    block = Block(10, 13, np.array([10, 12]), np.ones((2, 4), np.float32), {11: "torn"})
    assert np.isnan(block.filled()).all(axis=1).tolist() == [False, True, False]
    assert block.filled().dtype == np.float32


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:8001", "leave out the http://"),
        ("grpc://localhost:8001", "leave out the grpc://"),
        ("localhost", "has no port"),
        ("::1", "has no port"),
        ("", "no server is named: '' holds no address"),
        (":8001", "names no host; write localhost:8001"),
        ("localhost:99999", "99999 is not a port"),  # gRPC asks at 34463
        ("localhost:0", "0 is not a port"),
        ("localhost：8001", "full-width"),
        ("a:8001，b:8001", "full-width"),
    ],
)
def test_an_address_that_cannot_work_is_refused_at_once(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Client(url, model="vit-b-16")


@pytest.mark.parametrize("url", ["localhost:8001", "10.0.0.1:8001", "[::1]:8001", "unix:/run/triton", "dns:///host:1"])
def test_addresses_that_grpc_knows_are_taken(url: str) -> None:
    with Client(url, model="vit-b-16") as client:
        assert repr(client) == f"Client({url!r}, model='vit-b-16')"


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(ValueError, match="served_models"):
        Client("localhost:8001", model="")


@pytest.mark.parametrize("seconds", [1e10, 1e300, float("inf")])
@pytest.mark.parametrize("name", ["connect_s", "request_s"])
def test_deadlines_are_such_as_grpc_can_count(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"Timeout.{name} must be at most 1000000, got "):
        Timeout(**{name: seconds})
    Client("localhost:1", model="m", timeout=Timeout(connect_s=1e6, request_s=1e6)).close()
