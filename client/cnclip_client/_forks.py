"""Has gRPC leave forks alone, and tells where one has cut it off; imported before anything that imports gRPC.

Ray and PySpark fork the process that starts them. gRPC's handlers at a fork, on by default, now and then abort the
child of a process that has a channel, or leave it hanging: clusters that do not start. Without them a child that only
runs another program is well. One that itself goes on with gRPC waits for ever for threads that it has not, and one
that uses its parent's channel writes into its parent's connection, which then waits as well: it is told so instead.
Who wants gRPC's handlers sets the same variable, which is left as the user has set it.
"""

from __future__ import annotations

import os

__all__ = ["note_use", "require_uncut"]

_HANDLED = os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0").lower() in ("1", "true", "yes")
_REASON = (
    "gRPC does not survive a fork, and this process was forked from one that had made a Client: have it started anew, "
    "by multiprocessing's 'spawn' or 'forkserver' (of a torch DataLoader: multiprocessing_context='spawn'), or make "
    "the first Client after the fork"
)

_used = _cut = False


def note_use() -> None:
    """Takes note that gRPC has threads here from now on: they outlive a channel that is closed."""
    global _used
    _used = True


def require_uncut() -> None:
    """Raises RuntimeError where gRPC would hang, as a fork has cut it off."""
    if _cut:
        raise RuntimeError(_REASON)


def _note_fork() -> None:
    global _cut
    _cut = _used and not _HANDLED


os.register_at_fork(after_in_child=_note_fork)
