"""Approximate indexes over extracted features: millions of them searched in a fraction of exact search's time.

    from cnclip_client.index import Index, build_index
    from cnclip_client.retrieval import read_features

    built = build_index("features/", "photos.index", "image")
    print(built.record.measured.recall_at_10)
    with Index.open("photos.index") as index:
        for hits in index.search(read_features("texts.parquet", "text"), k=10):
            print(hits.query, hits.ids, hits.scores)

The kinds are faiss's own. An index is a folder:

| file | holds |
|---|---|
| `index.json` | what it is of, how it was made, how good it is; it makes the folder an index |
| `index.faiss` | faiss's index of the rows |
| `ids.npy`, or `ids.jsonl` and `ids.offsets.npy` | the rows' ids |
| `features.npy` | float16 [N, D], where faiss's index does not hold features whole |
| `queries.npz` | the queries that it is measured with, and what exact search found for them |

Needs the extra `index` (faiss).
"""

from cnclip_client.index._build import build_index
from cnclip_client.index._duplicates import DuplicateGroup, near_duplicates
from cnclip_client.index._index import Index
from cnclip_client.index._measure import Measured
from cnclip_client.index._options import Built, IndexOptions, Report
from cnclip_client.index._record import Record

__all__ = [
    "Built",
    "DuplicateGroup",
    "Index",
    "IndexOptions",
    "Measured",
    "Record",
    "Report",
    "build_index",
    "near_duplicates",
]
