"""Features of any number of images or texts, from files to a file; a job that was killed goes on where it was.

    from cnclip_client import Client, Retry
    from cnclip_client.extraction import extract
    from cnclip_client.sources import image_source

    with Client("localhost:8001", model="vit-b-16", retry=Retry(attempts=1000, deadline_s=600)) as client:
        summary = extract(client, image_source("photos/"), "photos.parquet")
        print(summary.items, summary.failures, summary.seconds)

`encode_items` is the same without files: items of any origin in, features with their ids out.
"""

from cnclip_client.extraction._encoding import Encoded, Engine, Failure, encode_items
from cnclip_client.extraction._job import extract
from cnclip_client.extraction._options import ExtractOptions, RepeatedIds, Summary

__all__ = ["Encoded", "Engine", "ExtractOptions", "Failure", "RepeatedIds", "Summary", "encode_items", "extract"]
