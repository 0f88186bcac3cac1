"""Watches the processes of the Python models.

Triton starts one of them for each instance. It never starts one again that has died, fails every request that needs it,
and goes on to call the model, and itself, ready: whoever serves has to look for himself.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["StubWatch"]

_STUB = "triton_python_backend_stub"


class StubWatch:
    """Remembers the stubs of a server that has come up, and tells which have died since.

    Args:
        pid: The process id of tritonserver.
    """

    def __init__(self, pid: int) -> None:
        self._stubs = {child: model for child in _children(pid) if (model := _model_of(child))}

    def dead(self) -> list[str]:
        """The models that have lost a process, in alphabetical order."""
        return sorted({model for pid, model in self._stubs.items() if not _lives(pid)})


def _children(pid: int) -> list[int]:
    """The processes that any thread of a process has started and that it has not yet buried."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.extend(map(int, thread.read_text().split()))
    return found


def _model_of(pid: int) -> str | None:
    """The model that a stub runs; None for another process."""
    try:
        program, served, *_ = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (OSError, ValueError):
        return None
    # It is started on REPOSITORY/MODEL/VERSION/FILE.
    return Path(served).parts[-3] if Path(program).name == _STUB and len(Path(served).parts) > 2 else None


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    # The state follows the name, which may itself hold parentheses. Triton buries a dead stub late: until then, Z.
    return stat.rpartition(")")[2].split()[0] not in "ZX"
