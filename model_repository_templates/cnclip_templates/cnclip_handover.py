"""Whether pixels go on in a GPU's memory: where Triton copies a GPU's tensors right also when it is short of memory.

What a model gives on a GPU, Triton copies into a pool of its own there, of 64 MiB by default. Where that has no room
left, as with some hundred images under way, it takes pinned memory of the host. To that its Python backend copies in
the wrong direction, logs "failed to copy data: invalid argument", and sends on what was there before: features of no
image, and no error (triton-inference-server/server, issues 7148 and 8177; `PbMemory::CopyBuffer` of releases up to
25.04 at least, and of nvidia-pytriton 0.7). Without pinned memory it takes other memory of the host, to which the copy
is right.

It also loads the driver by the name `libcuda.so`, and where only `libcuda.so.1` is there goes on without, to call what
it does not have at the first tensor on a GPU (`CUDAHandler` in its pb_utils.cc).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_PINNED = "--pinned-memory-pool-byte-size"


def server_arguments() -> list[str]:
    """The command line of the tritonserver that started this process; empty if it can't be read."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def why_by_host(arguments: Sequence[str]) -> str:
    """Why pixels have to leave the GPU's memory on their way to the next model; empty if they need not.

    Args:
        arguments: the tritonserver's.
    """
    if not _has_no_pinned_memory(arguments):
        return f"this tritonserver was not started with {_PINNED}=0, as cnclip-serve does (docs/gpu.md)"
    if _loads("libcuda.so.1") and not _loads("libcuda.so"):
        return "Triton looks for libcuda.so, and only libcuda.so.1 is there: link one to the other"
    return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _has_no_pinned_memory(arguments: Sequence[str]) -> bool:
    sizes = [
        value if equals else following
        for argument, following in pairwise([*arguments, ""])
        for name, equals, value in [argument.partition("=")]
        if name == _PINNED
    ]
    return sizes[-1:] == ["0"]
