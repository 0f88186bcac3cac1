"""A Ray Data pipeline: a table of images becomes a table of features, on all of a cluster's nodes.

    python examples/jobs/ray_features.py images.parquet features/ --url triton-a:8001,triton-b:8001 --model NAME

`images.parquet`, a file or a folder, has the columns `image_id` and `bytes`. Afterwards `features/good` is what
`cnclip search --image-feats` and `cnclip index images` read, and `features/bad` names what has no feature, and why.

`cnclip extract --engine ray` does more, and in less code: it keeps the order and goes on after a kill. This here is
for pipelines that do something else with the rows as well, before or after. `RAY_ADDRESS` names the cluster; without
it, Ray starts one on this machine. Needs `pip install 'cn-clip-triton[ray]'`.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray
from cnclip_client import Client, Retry
from cnclip_client.ray import FeatureExtractor


def good(table: pa.Table) -> pa.Table:
    """The rows that have a feature, without the column of reasons."""
    return table.filter(pc.is_null(table["error"])).drop_columns(["error"])


def bad(table: pa.Table) -> pa.Table:
    """The ids of the other rows, and the reasons."""
    return table.filter(pc.is_valid(table["error"])).drop_columns(["feature"])


def encode(images: str, output: Path, url: str, model: str, actors: int) -> tuple[int, int]:
    """Encodes a table of images; returns how many have features, and how many have none."""
    # Sent to every actor, which makes its own client: connections do not travel. A server that restarts is waited for.
    connect = partial(Client, url, model=model, retry=Retry.patient(600))
    with connect() as client:
        expected = client.info  # all actors are held to it: features of two checkpoints are no table
    encoded = ray.data.read_parquet(images, columns=["image_id", "bytes"]).map_batches(
        FeatureExtractor,
        fn_constructor_kwargs={
            "connect": connect,
            "kind": "image",
            "column": "bytes",
            "drop": ["bytes"],
            "expected": expected,
        },
        batch_format="pyarrow",
        batch_size=512,  # several requests' worth, so that they are under way together
        concurrency=actors,
        num_cpus=0.25,  # they wait for the servers, mostly; with a whole one each, none might be left to read with
    )
    # Written twice, encoded once: Ray keeps the features meanwhile, on disk where memory does not do.
    encoded = encoded.materialize()
    counts = []
    for name, rows in (("good", good), ("bad", bad)):
        part = encoded.map_batches(rows, batch_format="pyarrow").materialize()
        counts.append(part.count())
        if counts[-1]:
            part.write_parquet(str(output / name))
    return counts[0], counts[1]


def main() -> int:
    """Reads the command line; returns the exit status, 1 if some images have no feature."""
    parser = argparse.ArgumentParser(description="Features of a table of images, on Ray.")
    parser.add_argument("images", help="parquet with the columns image_id and bytes: a file or a folder")
    parser.add_argument("output", type=Path, help="a folder that is not there yet")
    parser.add_argument("--url", default="localhost:8001", help="the servers' gRPC addresses, with commas")
    parser.add_argument("--model", default="vit-b-16")
    parser.add_argument("--actors", type=int, default=2, help="clients at work at the same time")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} is there already; remove it, or name another folder")
    done, failed = encode(options.images, options.output, options.url, options.model, options.actors)
    print(f"{done} images have features, in {options.output / 'good'}; {failed} have none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
