"""How much of a card's memory is taken: by this process, and by servers that it starts."""

from __future__ import annotations

import os

from cnclip_bench.process_memory import proportional_mib

__all__ = ["taken_mib"]


def taken_mib(gpu: bool) -> float:
    """MiB that are taken of the card by all that runs on it; on a CPU, by this process and what it started.

    Asks CUDA, which knows of CUDA_VISIBLE_DEVICES and MIG; its own part of the card (some 500 MiB) counts from the
    first call on, so take differences.
    """
    if not gpu:
        return proportional_mib(os.getpid())
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20
