"""How extracted features become files; `cnclip_client.features` has what each format holds, and who reads it.

from cnclip_client.sinks import open_sink

sink = open_sink(Path("photos.parquet"), "image", size=512)
"""

from cnclip_client.features import Dtype, Sink, open_sink

__all__ = ["Dtype", "Sink", "open_sink"]
