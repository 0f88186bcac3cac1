"""The commands, by their names."""

from __future__ import annotations

from cnclip_bench._cli import app as bench
from cnclip_builder.cli.app import app as build
from cnclip_client._cli import app as client
from cnclip_gateway._cli import app as gateway
from cnclip_server._cli import app as serve

APPS = {
    "cnclip": client,
    "cnclip-build": build,
    "cnclip-serve": serve,
    "cnclip-bench": bench,
    "cnclip-gateway": gateway,
}
