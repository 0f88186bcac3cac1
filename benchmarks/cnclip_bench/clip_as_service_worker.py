"""Runs clip-as-service's executor in an environment of its own, for `cnclip-bench compare`.

It needs libraries of other versions than ours, so this file imports nothing of ours. It reads a line of JSON from
stdin, `{"tower": "image", "sizes": [bytes of each item]}`, then the items; it answers `[rows, columns]`, then float32s.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from typing import Any


def main(name: str) -> None:
    """Answers until stdin ends.

    Args:
        name: Of the model, such as `CN-CLIP/ViT-B-16`.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # cn_clip prints as it loads
    warnings.simplefilter("ignore")
    import numpy as np
    from clip_server.executors.clip_torch import CLIPEncoder
    from docarray import Document, DocumentArray

    executor: Any = CLIPEncoder(name=name, device="cpu")
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        items = [sys.stdin.buffer.read(size) for size in asked["sizes"]]
        is_image = asked["tower"] == "image"
        documents = DocumentArray([Document(blob=item) if is_image else Document(text=item.decode()) for item in items])
        asyncio.run(executor.encode(documents))
        features = np.ascontiguousarray(documents.embeddings, dtype=np.float32)
        answers.write(json.dumps(features.shape).encode() + b"\n" + features.tobytes())
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
