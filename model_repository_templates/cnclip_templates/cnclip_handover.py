"""Whether pixels go on in a GPU's memory: where Triton copies a GPU's tensors right also when it is short of memory.

What a model gives on a GPU, Triton copies into a pool of its own there, of 64 MiB by default. Where that has no room
left, as with some hundred images under way, it takes pinned memory of the host. To that its Python backend copies in
the wrong direction, logs "failed to copy data: invalid argument", and sends on what was there before: features of no
image, and no error (triton-inference-server/server, issues 7148 and 8177; `PbMemory::CopyBuffer` of releases up to
25.04 at least, and of nvidia-pytriton 0.7). Without pinned memory it takes other memory of the host, to which the copy
is right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_PINNED = "--pinned-memory-pool-byte-size"


def server_arguments() -> list[str]:
    """The command line of the tritonserver that started this process; empty if it can't be read."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def is_safe(arguments: Sequence[str]) -> bool:
    """Whether a tritonserver with such arguments has no pinned memory."""
    sizes = [
        value if equals else following
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True)
        for name, equals, value in [argument.partition("=")]
        if name == _PINNED
    ]
    return sizes[-1:] == ["0"]
