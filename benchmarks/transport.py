"""What bringing ready pixels to an encoder costs a server: processor time an image, by the way that they come.

    python benchmarks/transport.py

A model that computes next to nothing takes pixels as an image encoder does (UINT8 `[N, 224, 224, 3]`, 150 kB an image).
They come in gRPC messages of 1, 8 and 32 rows, with other windows of HTTP/2, over HTTP with binary data, and through
memory shared on one host, to servers whose `malloc` is set in several ways. What is told is time that processors took,
not time that passed: other work on the machine is not in it. All ways are measured in turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import tritonclient.grpc as triton
from cnclip_bench.processes import processor_seconds
from cnclip_bench.stats import in_turns
from cnclip_server import TritonServer
from tritonclient.utils import shared_memory

SIDE, FEATURES = 224, 512
IMAGE_BYTES = SIDE * SIDE * 3
ADMIN_KEY = "benchmark"
CONFIG = f"""
name: "pixels"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 64
input [ {{ name: "pixels" data_type: TYPE_UINT8 dims: [ {SIDE}, {SIDE}, 3 ] }} ]
output [ {{ name: "features" data_type: TYPE_FP32 dims: [ {FEATURES} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""

# As cnclip-serve sets it, and otherwise.
MALLOCS: dict[str, dict[str, str]] = {
    "": {},
    ", MALLOC_ARENA_MAX=1": {"MALLOC_ARENA_MAX": "1"},
    ", MALLOC_ARENA_MAX=2": {"MALLOC_ARENA_MAX": "2"},
    ", glibc's first thresholds": {"MALLOC_TRIM_THRESHOLD_": str(2**17), "MALLOC_MMAP_THRESHOLD_": str(2**17)},
}
WINDOWS: dict[str, list[tuple[str, int]]] = {
    "": [],
    ", windows of 16 MiB": [("grpc.http2.lookahead_bytes", 2**24), ("grpc.http2.max_frame_size", 2**24 - 1)],
    ", no probing of the bandwidth": [("grpc.http2.bdp_probe", 0)],
}
# Ways that are given on all servers; the others on the first.
EVERYWHERE = ("gRPC, 1 row", "gRPC, 8 rows", "gRPC, 32 rows")

Way = Callable[[int], None]
"""Sends so many images, and has the answers."""


def write_model(repository: Path) -> None:
    """Writes a model that looks at every image's first pixels and no more."""
    from onnx import TensorProto, helper, save

    take = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("from", 0), ("to", FEATURES))
    ]
    take += [helper.make_tensor("axis", TensorProto.INT64, [1], [1])]
    take += [helper.make_tensor("flat", TensorProto.INT64, [2], [0, IMAGE_BYTES])]
    nodes = [
        helper.make_node("Reshape", ["pixels", "flat"], ["row"]),
        helper.make_node("Slice", ["row", "from", "to", "axis"], ["few"]),
        helper.make_node("Cast", ["few"], ["features"], to=TensorProto.FLOAT),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES])
    graph = helper.make_graph(nodes, "pixels", [pixels], [features], take)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (repository / "pixels/1").mkdir(parents=True)
    save(model, repository / "pixels/1/model.onnx")
    (repository / "pixels/config.pbtxt").write_text(CONFIG, encoding="ascii")


def by_grpc(url: str, rows: int, channel: list[tuple[str, int]], opened: ExitStack) -> Way:
    """gRPC, the pixels in the message."""
    client = opened.enter_context(triton.InferenceServerClient(url, channel_args=channel or None))
    tensor = triton.InferInput("pixels", [rows, SIDE, SIDE, 3], "UINT8")

    def send(images: int) -> None:
        for turn in range(images // rows):
            pixels = np.full((rows, SIDE, SIDE, 3), turn % 256, np.uint8)
            tensor.set_data_from_numpy(pixels)
            features = client.infer("pixels", [tensor]).as_numpy("features")
            assert (features == turn % 256).all()  # noqa: S101

    return send


def by_shared_memory(url: str, rows: int, opened: ExitStack) -> Way:
    """gRPC, the pixels in memory that client and server share, by the client library's own functions."""
    client = opened.enter_context(triton.InferenceServerClient(url))
    size, headers = rows * IMAGE_BYTES, {"triton-grpc-protocol-admin-key": ADMIN_KEY}
    key = f"/cnclip-transport-{os.getpid()}"
    region = shared_memory.create_shared_memory_region("pixels", key, size)
    opened.callback(shared_memory.destroy_shared_memory_region, region)
    client.register_system_shared_memory("pixels", key, size, headers=headers)
    tensor = triton.InferInput("pixels", [rows, SIDE, SIDE, 3], "UINT8")
    tensor.set_shared_memory("pixels", size)

    def send(images: int) -> None:
        for turn in range(images // rows):
            pixels = np.full((rows, SIDE, SIDE, 3), turn % 256, np.uint8)
            shared_memory.set_shared_memory_region(region, [pixels])
            features = client.infer("pixels", [tensor]).as_numpy("features")
            assert (features == turn % 256).all()  # noqa: S101

    return send


def by_http(url: str, rows: int) -> Way:
    """HTTP, the pixels behind a header in JSON, and features likewise; one connection."""
    pixels = {"name": "pixels", "shape": [rows, SIDE, SIDE, 3], "datatype": "UINT8"}
    pixels["parameters"] = {"binary_data_size": rows * IMAGE_BYTES}
    wanted = {"name": "features", "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [pixels], "outputs": [wanted]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}

    def send(images: int) -> None:
        with closing(http.client.HTTPConnection(url)) as connection:
            for turn in range(images // rows):
                body = header + np.full((rows, SIDE, SIDE, 3), turn % 256, np.uint8).tobytes()
                connection.request("POST", "/v2/models/pixels/infer", body, headers)
                answer = connection.getresponse()
                data = answer.read()[int(answer.headers["Inference-Header-Content-Length"]) :]
                assert (np.frombuffer(data, np.float32) == turn % 256).all()  # noqa: S101

    return send


@contextmanager
def server_of(repository: Path, malloc: dict[str, str]) -> Iterator[TritonServer]:
    """A server with its own settings of `malloc`."""
    with (
        mock.patch.dict(os.environ, malloc),
        TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, admin_key=ADMIN_KEY) as server,
    ):
        yield server


def measure(images: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Gives the server's and the client's milliseconds an image, by the way, of each round."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="cnclip-transport-")))
        write_model(folder)
        ways: dict[str, tuple[TritonServer, Way]] = {}
        for malloc, variables in MALLOCS.items():
            server = opened.enter_context(server_of(folder, variables))
            own: dict[str, Way] = {
                f"gRPC, {rows} row{'s' if rows > 1 else ''}{name}": by_grpc(server.grpc_url, rows, channel, opened)
                for name, channel in WINDOWS.items()
                for rows in (1, 8, 32)
            }
            own["HTTP, 8 rows"] = by_http(server.http_url.removeprefix("http://"), 8)
            if not malloc:
                own["shared memory, 8 rows"] = by_shared_memory(server.grpc_url, 8, opened)
            ways |= {way + malloc: (server, send) for way, send in own.items() if not malloc or way in EVERYWHERE}

        def cost(server: TritonServer, send: Way) -> tuple[float, float]:
            before = np.array([processor_seconds(server.pid), time.process_time()])
            send(images)
            after = np.array([processor_seconds(server.pid), time.process_time()])
            of_server, of_client = 1000 * (after - before) / images
            return of_server, of_client

        costs = {way: partial(cost, *both) for way, both in ways.items()}
        in_turns(costs, 1)  # does not count
        return in_turns(costs, rounds)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="of each way in a round; a multiple of 32 (1024)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each way is measured (7)")
    options = parser.parse_args()
    taken = measure(options.images, options.rounds)
    base = np.asarray(taken["gRPC, 8 rows"])
    print("| ms of processors an image | server | times gRPC, 8 rows | client |\n|---|---|---|---|")
    for way, rounds in taken.items():
        (of_server, of_client), ratio = np.median(rounds, axis=0), np.median(np.asarray(rounds)[:, 0] / base[:, 0])
        print(f"| {way} | {of_server:.3f} | {ratio:.2f} | {of_client:.3f} |")


if __name__ == "__main__":
    main()
