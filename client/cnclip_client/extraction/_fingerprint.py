"""What a job is: what two runs must share for their features to be put into one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnclip_client._info import ModelInfo
from cnclip_client.extraction._options import ExtractOptions

__all__ = ["REPEATED_IDS", "differences", "fingerprint_of", "lasting", "origin_in"]

REPEATED_IDS = "repeated_ids"


def fingerprint_of(kind: str, source: Mapping[str, Any], info: ModelInfo, options: ExtractOptions) -> dict[str, Any]:
    """Returns what a job is, in JSON's values.

    Args:
        kind: What is read: "image" or "text".
        source: The source's fingerprint.
        info: What encodes it.
        options: How; only what is seen in the output is taken of it.
    """
    known: dict[str, Any] = {
        "kind": kind,
        "model": info.model,
        "arch": info.arch,
        "checkpoint_sha256": info.checkpoint_sha256,
        "precision": info.precision,
        "embedding_size": info.embedding_size,
        "normalize": options.normalize,
        "dtype": options.dtype,
        "source": lasting(source),
    }
    if kind == "text":
        known["context_length"] = info.context_length
        if not options.preprocess:
            known["preprocess"] = False
    elif info.decoding != "exact":
        known["decoding"] = info.decoding
    if options.repeated_ids == "first":
        known[REPEATED_IDS] = "first"
    return known


def lasting(source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a source's fingerprint without its files' times: they tell that items are to be compared, not others."""
    return {name: value for name, value in source.items() if name != "files"}


def origin_in(known: dict[str, Any]) -> dict[str, Any]:
    """Returns what a file of features is to say of itself: all of it but what they were read from."""
    return {name: value for name, value in known.items() if name != "source"}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns in words in what two jobs are not the same."""
    before, now = _flat(before), _flat(now)
    return [
        f"{name} {before.get(name)!r}, now {now.get(name)!r}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]


def _flat(known: dict[str, Any]) -> dict[str, Any]:
    """Returns the fingerprint with the source's part beside the others."""
    source = known.get("source")
    inside = source if isinstance(source, dict) else {}
    return {
        **{name: value for name, value in known.items() if name != "source"},
        **{f"source {name}": value for name, value in inside.items()},
    }
