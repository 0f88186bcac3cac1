"""Top-k search over extracted features: images for texts, and texts for images.

    from cnclip_client.retrieval import Gallery, read_features, search

    with Gallery(read_features("images.jsonl", "image")) as gallery:
        for hits in search(read_features("texts.jsonl", "text"), gallery, k=10):
            print(hits.query, hits.ids, hits.scores)

Exact: every query is compared with everything. What comes out depends on the features and their order alone, not on
block sizes or threads: of equal scores, the earlier in the file is the better. Needs the extra `search` (faiss).
"""

from cnclip_client._vocabulary import Direction, Id
from cnclip_client.features import Features, read_features
from cnclip_client.retrieval._gallery import Gallery
from cnclip_client.retrieval._search import Hits, search

__all__ = ["Direction", "Features", "Gallery", "Hits", "Id", "read_features", "search"]
