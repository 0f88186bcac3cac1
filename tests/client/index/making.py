"""Features in files, and what is true of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cnclip_client.retrieval import Features

SIZE = 16
SHA, OTHER_SHA = "a" * 64, "b" * 64


def clustered(rows: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """float32 [rows, size] of length 1, around 20 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, size))
    features = centres[rng.integers(0, 20, rows)] + 0.7 * rng.standard_normal((rows, size))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def parquet(path: Path, ids: list, features: np.ndarray, kind: str = "image", sha: str | None = None) -> Path:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    table = pa.table({f"{kind}_id": pa.array(ids), "feature": flat})
    if sha is not None:
        told = {"checkpoint_sha256": sha, "model": "vit-b-16", "arch": "ViT-B-16"}
        table = table.replace_schema_metadata({"cnclip": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def in_parts(folder: Path, parts: list[tuple[list, np.ndarray]], kind: str = "image") -> Path:
    """A folder as a finished job leaves it."""
    for number, (ids, features) in enumerate(parts):
        name = f"part-{number:05d}.parquet"
        parquet(folder / name, ids, features, kind)
        (folder / f"{name}.job.json").write_text(json.dumps({"last": number == len(parts) - 1}))
    (folder / "job.json").write_text(json.dumps({"parts": {"format": "parquet"}}))
    return folder


def asking(features: np.ndarray, ids: list | None = None) -> Features:
    held = np.empty(len(features), dtype=object)
    held[:] = range(len(features)) if ids is None else ids
    return Features(held, features)


def best(queries: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """int64 [n, k], the rows of the k highest products, by definition."""
    scores = queries.astype(np.float64) @ features.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
