"""Where the images and texts of a batch job come from.

    from cnclip_client.sources import image_source

    for item in image_source("photos/").items():
        print(item.id, item.value or item.failure)

| images | ids |
|---|---|
| a folder, with all in it; a glob | the path relative to the folder; the path |
| a MUGE TSV, `id<TAB>base64` in either alphabet | the first column |
| a cn_clip LMDB, its `imgs` or the folder above | the key |
| parquet, a file or a folder: a column of images, paths, or Hugging Face's `{bytes, path}` | a column, or the row |
| WebDataset's tars: one, a folder of them, a pattern; img2dataset's folders | the key, or a key of the .json |
| a list, a path a line | the line |

| texts | ids |
|---|---|
| MUGE JSONL: `text_id`, `text` | `text_id` |
| a text a line | the line's number, from 1 |
| parquet, a file or a folder | a column, or the row, from 0 |
| WebDataset's tars: the .txt, or a key of the .json | the key, or a key of the .json |

All but an LMDB may be elsewhere: `s3://bucket/photos`, and what else fsspec knows.

An id that is text in the file, as in a TSV, an LMDB or a list of the numbers themselves, is an integer if it is written
as Python would write one; so `7` is, as for cn_clip, and `007` stays a string. Paths are always strings.
"""

from cnclip_client.sources._item import Item, Place, Source
from cnclip_client.sources._open import ImageFormat, TextFormat, image_source, text_source

__all__ = ["ImageFormat", "Item", "Place", "Source", "TextFormat", "image_source", "text_source"]
