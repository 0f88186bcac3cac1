#!/usr/bin/env python3
"""Exits with 1 if a model of the server beside it is dead or frozen, which Triton does not say; standard library only.

Triton goes on to call itself ready when the process of a Python model has died or hangs. So each of them is asked for
something real, and an error is death (from 2.64 on `/v2/models/NAME/ready` tells of a dead process too). A server that
is merely busy must not be restarted: no answer in time is fine as long as the server says that it lives and, by its
metrics, whatever model requests wait for has executed something since an earlier look. Looks are remembered in a file;
a model that stands still over three of them and CNCLIP_STALL_SECONDS (90) is frozen. What the server's flags restrict
(--http-restricted-api) is done without.

With CNCLIP_PROBE_RESTARTS=1 it ends the server that serve.sh started once two probes in a row have failed after one
that had not: Docker Compose marks a container as unhealthy and leaves it at that, but starts one again that has ended.
SIGTERM comes first, and SIGKILL if the next probe fails too.

Usage: probe.py [URL [SECONDS [loaded]]], by default http://127.0.0.1:8000 and 10; SECONDS are for all of it. With
`loaded` a server that has no model ready fails too: for the start of one that goes on without what it cannot load.
The metrics are read from CNCLIP_METRICS_URL, by default port 8002 of the same host.
"""

import base64
import contextlib
import json
import os
import random
import re
import signal
import struct
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

# 1 x 1 pixel.
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# By the end of a Python model's name: its input, and an item for it.
_ITEMS = {"-image-preprocess": ("IMAGE", _PNG), "-text-tokenize": ("TEXT", b"?")}
_COUNT = re.compile(
    r'^nv_inference_(pending_request|exec)_count\{.*?model="([^"]*)".*?version="([^"]*)".*\} (\S+)$', re.M
)
_LOOKS = 3
_STALL_S = 90.0
_FORGET_S = 300.0
_FAILURES_TO_END = 2

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Counts = dict[str, dict[str, float]]  # of "NAME/VERSION", its `pending_request` and `exec`


def main(url: str = "http://127.0.0.1:8000", seconds: str = "10", wanted: str = "") -> int:
    """Probes a server, says on stderr what is wrong, and ends it if it is told to; returns the exit status."""
    status = _probe(url, seconds, loaded=wanted == "loaded")
    if os.environ.get("CNCLIP_PROBE_RESTARTS") == "1":
        _end_if_sick(_state_file(url).with_suffix(".failures"), sick=status != 0)
    return status


def _end_if_sick(path: Path, *, sick: bool) -> None:
    """Counts failures since the last success, none before the first: a server that loads its models is not sick."""
    failures = 0
    if sick:
        try:
            failures = int(path.read_text(encoding="ascii")) + 1
            pid = int((Path(tempfile.gettempdir()) / "cnclip-tritonserver.pid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        if failures >= _FAILURES_TO_END:
            print(f"ending tritonserver (process {pid})", file=sys.stderr)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM if failures == _FAILURES_TO_END else signal.SIGKILL)
    _write(path, str(failures))


def _probe(url: str, seconds: str, *, loaded: bool) -> int:
    patience = float(seconds) / 2
    try:
        _request(f"{url}/v2/health/live", patience)
        counts = _counts(_metrics_url(url), patience)
        models = _models(url, patience, counts)
        if loaded and not models:
            raise ValueError("no model is ready")
        random.shuffle(models)  # where time does not suffice for all, each has its turn
        try:
            deadline = time.monotonic() + patience
            for name, version in models:
                _probe_model(url, name, version, deadline)
        except TimeoutError:
            _request(f"{url}/v2/health/live", patience)  # busy, or frozen: the counts tell
        frozen = _standing_still(_state_file(url), counts, time.time())
    except (OSError, ValueError) as error:
        print(f"{_without_password(getattr(error, 'url', None) or url)}: {_reason(error)}", file=sys.stderr)
        return 1
    if frozen:
        print(f"requests wait for {', '.join(frozen)} and none is executed", file=sys.stderr)
    return 1 if frozen else 0


def _models(url: str, seconds: float, counts: Counts) -> "list[tuple[str, str]]":
    """The versions of models that are ready, by the metrics where the server must not list them."""
    try:
        listed = json.loads(_request(f"{url}/v2/repository/index", seconds, b""))
    except urllib.error.HTTPError as error:
        if error.code != 403:
            raise
        return [(name, version) for name, _, version in (key.rpartition("/") for key in counts)]
    return [(model["name"], model["version"]) for model in listed if model.get("state") == "READY"]


def _probe_model(url: str, name: str, version: str, deadline: float) -> None:
    for suffix, (tensor, item) in _ITEMS.items():
        if name.endswith(suffix):
            header, body = _inference(tensor, item)
            address = f"{url}/v2/models/{urllib.parse.quote(name)}/versions/{version}"
            for path, content in (("ready", None), ("infer", body)):
                seconds = max(deadline - time.monotonic(), 0.1)
                try:
                    _request(f"{address}/{path}", seconds, content, header if content else None)
                except urllib.error.HTTPError as error:
                    if error.code != 403:  # restricted: what answers lives
                        raise


def _inference(tensor: str, item: bytes) -> "tuple[dict[str, str], bytes]":
    """A request of one item in Triton's binary form: a JSON header, then the tensor."""
    content = struct.pack("<I", len(item)) + item
    described = {"name": tensor, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}
    header = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return {"Inference-Header-Content-Length": str(len(header))}, header + content


def _metrics_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return os.environ.get("CNCLIP_METRICS_URL") or f"{parts.scheme}://{parts.hostname}:8002/metrics"


def _counts(metrics_url: str, seconds: float) -> Counts:
    """What waits for each model, and what each has executed; nothing where there are no metrics to read."""
    try:
        metrics = _request(metrics_url, seconds).decode()
    except (OSError, ValueError):
        return {}
    counts: Counts = {}
    for count, name, version, value in _COUNT.findall(metrics):
        counts.setdefault(f"{name}/{version}", {})[count] = float(value)
    return counts


def _state_file(url: str) -> Path:
    """Where looks are remembered: a file that is ours alone, one for each server."""
    port = urllib.parse.urlsplit(url).port or 80
    return Path(tempfile.gettempdir()) / f"cnclip-probe-{os.getuid()}-{port}.json"


def _standing_still(path: Path, counts: Counts, now: float) -> "list[str]":
    """The models that requests wait for and that have executed nothing over several looks.

    Args:
        path: Where the looks before are remembered, and this one is.
        counts: What the server says now.
        now: The time; a state file outlives its process, so it is the clock on the wall.
    """
    past: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # the first look, or nowhere to remember it
        past = json.loads(path.read_text(encoding="utf-8"))
    if past.pop("container", None) != _container() or now - past.pop("looked", 0) > _FORGET_S:
        past = {}
    still: dict[str, Any] = {}
    for key, count in counts.items():
        if not count.get("pending_request"):
            continue
        before = past.get(key)
        if before is None or before["exec"] != count.get("exec") or not before["at"] <= now:
            before = {"exec": count.get("exec"), "at": now, "looks": 0}
        still[key] = {**before, "looks": before["looks"] + 1}
    _write(path, json.dumps({**still, "container": _container(), "looked": now}))
    stall_s = _stall_s()
    return sorted(key for key, look in still.items() if look["looks"] >= _LOOKS and now - look["at"] >= stall_s)


def _stall_s() -> float:
    """How long nothing may be executed. A variable that says no number must not end a server that is well."""
    told = os.environ.get("CNCLIP_STALL_SECONDS", "").strip()
    try:
        seconds = float(told or _STALL_S)
    except ValueError:
        seconds = 0.0
    if seconds > 0:
        return seconds
    print(f"CNCLIP_STALL_SECONDS is {told!r}, no number of seconds: {_STALL_S} count", file=sys.stderr)
    return _STALL_S


def _write(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # nowhere to remember it
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def _container() -> str:
    """When the container's first process began: its temporary files may outlive it, and then tell of another server."""
    try:
        return Path("/proc/1/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


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


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
