"""Images that the client prepares have the features of those that the real server prepares, and fail for its reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import pytest
from cnclip_client import Client, Limits
from cnclip_client._connection.transport import Transport
from cnclip_client._connection.wire import Tensors
from cnclip_client._flow.items import harmless_image
from cnclip_server import TritonServer

pytestmark = pytest.mark.triton


def test_either_side_prepares_alike(demo_server: TritonServer, shared_images: list[Path]) -> None:
    limits = Limits(preparers=2)
    with (
        Client(demo_server.grpc_url, model="demo") as server,
        Client(demo_server.grpc_url, model="demo", limits=limits, prepare="client") as client,
    ):
        there, here = (one.encode_images(shared_images, errors="collect") for one in (server, client))
        assert server.info_of("image") == client.info_of("image")
    assert here.failures == there.failures
    assert len(there.failures) > 5
    np.testing.assert_allclose(here.features, there.features, atol=1e-6)


def test_the_server_tells_its_pillow(demo_server: TritonServer) -> None:
    transport = Transport(demo_server.grpc_url)
    try:
        told = transport.ask_text("demo-image-preprocess", "1", Tensors("IMAGE", "pillow"), harmless_image())
    finally:
        transport.close()
    assert told == PIL.__version__
