"""Features of any number of images or texts, from files to a file; a job that was killed goes on where it was.

    from cnclip_client import Client, Retry
    from cnclip_client.extraction import extract
    from cnclip_client.sources import image_source

    with Client("localhost:8001", model="vit-b-16", retry=Retry.patient(600)) as client:
        summary = extract(client, image_source("photos/"), "photos.parquet")
        print(summary.items, summary.failures, summary.seconds)

`extract_parts` writes a folder of files instead, which several jobs may share out.
`encode_items` is the same without files: items of any origin in, features with their ids out.
"""

from cnclip_client.extraction._encoding import Encoded, Engine, Failure, encode_items
from cnclip_client.extraction._job import extract
from cnclip_client.extraction._options import ExtractOptions, RepeatedIds, Summary
from cnclip_client.extraction._parts import extract_parts
from cnclip_client.extraction._sharding import PartFormat, Sharding

__all__ = [
    "Encoded",
    "Engine",
    "ExtractOptions",
    "Failure",
    "PartFormat",
    "RepeatedIds",
    "Sharding",
    "Summary",
    "encode_items",
    "extract",
    "extract_parts",
]
