#!/usr/bin/env python3
"""Exits with 1 if a Python model of the server beside it is dead, which Triton does not say; with the standard library.

Triton goes on to call itself ready when the process of a Python model has died, and fails every request that needs it.
So each of them is asked for something real. A server that is merely busy must not be restarted: requests that wait too
long count as answered as long as the server says that it lives.

Usage: probe.py [URL [SECONDS]], by default http://127.0.0.1:8000 and 10; SECONDS are for all of it.
"""

import base64
import json
import random
import struct
import sys
import time
import urllib.error
import urllib.request
from typing import Any

# 1 x 1 pixel.
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# By the end of a Python model's name: its input, and an item for it.
_ITEMS = {"-image-preprocess": ("IMAGE", _PNG), "-text-tokenize": ("TEXT", b"?")}

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main(url: str = "http://127.0.0.1:8000", seconds: str = "10") -> int:
    """Probes a server and says on stderr what is wrong; returns the exit status."""
    patience = float(seconds) / 2
    try:
        _request(f"{url}/v2/health/live", patience)
        models = json.loads(_request(f"{url}/v2/repository/index", patience, b""))
        random.shuffle(models)  # where time does not suffice for all, each has its turn
        try:
            deadline = time.monotonic() + patience
            for model in models:
                if model.get("state") == "READY":
                    _probe_model(url, model["name"], model["version"], deadline)
        except TimeoutError:
            _request(f"{url}/v2/health/live", patience)  # busy
    except (OSError, ValueError) as error:
        print(f"{getattr(error, 'url', None) or url}: {_reason(error)}", file=sys.stderr)
        return 1
    return 0


def _probe_model(url: str, name: str, version: str, deadline: float) -> None:
    for suffix, (tensor, item) in _ITEMS.items():
        if name.endswith(suffix):
            header, body = _inference(tensor, item)
            seconds = max(deadline - time.monotonic(), 0.1)
            _request(f"{url}/v2/models/{name}/versions/{version}/infer", seconds, body, header)


def _inference(tensor: str, item: bytes) -> "tuple[dict[str, str], bytes]":
    """A request of one item in Triton's binary form: a JSON header, then the tensor."""
    content = struct.pack("<I", len(item)) + item
    described = {"name": tensor, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}
    header = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return {"Inference-Header-Content-Length": str(len(header))}, header + content


def _request(url: str, seconds: float, body: "bytes | None" = None, headers: "dict[str, str] | None" = None) -> bytes:
    # An open connection would make the server wait for it when it stops.
    request = urllib.request.Request(url, body, {"Connection": "close", **(headers or {})})  # noqa: S310
    try:
        with _opener.open(request, timeout=seconds) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from None
        raise


def _reason(error: Exception) -> Any:
    return error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else error


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
