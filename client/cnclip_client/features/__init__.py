"""Features in files, written and read: cn_clip's JSONL, parquet, or .npy with its ids beside it. A module for each.

| file | holds |
|---|---|
| `NAME.jsonl` | a line for each item: `{"image_id": ID, "feature": [...]}`, for texts `text_id`, as cn_clip has it |
| `NAME.parquet` | `image_id` or `text_id`, int64 if all are integers, else string; `feature`, a list of D |
| `NAME.npy` | float32 or float16 [N, D], with a JSON id a line in `NAME.ids.jsonl` |

A sink writes files that only grow, in a folder of its own, so that a job which was killed can cut them back to what it
knows to be there and go on; `assemble` makes the result of them. `read_features` reads all three, block by block.
"""

from cnclip_client.features._features import Features
from cnclip_client.features._open import open_sink
from cnclip_client.features._origin import Origin, origin_of, require_one_checkpoint
from cnclip_client.features._read import read_features
from cnclip_client.features._sink import Dtype, Sink

__all__ = [
    "Dtype",
    "Features",
    "Origin",
    "Sink",
    "open_sink",
    "origin_of",
    "read_features",
    "require_one_checkpoint",
]
