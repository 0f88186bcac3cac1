"""Chooses the format by the name of the output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnclip_client._vocabulary import Kind
from cnclip_client.features._jsonl import JsonlSink
from cnclip_client.features._npy import NpySink
from cnclip_client.features._parquet import ParquetSink
from cnclip_client.features._sink import Dtype, Sink

__all__ = ["open_sink"]


def open_sink(
    output: Path, kind: Kind, *, size: int, dtype: Dtype = "float32", origin: Mapping[str, Any] | None = None
) -> Sink:
    """Returns the sink of an output.

    Args:
        output: Its name ends in .jsonl, .parquet or .npy.
        kind: Whose features they are; it names the ids.
        size: D, the features' length.
        dtype: Of the numbers in the file.
        origin: What the features are of, in JSON's values, with the keys of `features.Origin`: parquet keeps it.

    Raises:
        ValueError: It ends in something else, or is JSONL of float16.
        MissingExtra: It is parquet, and pyarrow is not installed.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype must be float32 or float16, got {dtype}")
    if output.suffix == ".parquet":
        return ParquetSink(output, kind, size, dtype, origin)
    if output.suffix == ".npy":
        return NpySink(output, size, dtype)
    if output.suffix != ".jsonl":
        raise ValueError(
            f"{output.name} ends in none of .jsonl, .parquet and .npy; choose one, or end it in / for a folder of parts"
        )
    if dtype != "float32":
        raise ValueError(f"JSON has no {dtype}; leave out dtype, or write .npy or .parquet")
    return JsonlSink(output, kind, size)
