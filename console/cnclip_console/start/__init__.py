"""How each of the five commands begins: Ctrl-C ends it without a word while it is still being imported.

That takes a second, and several where its files are not in memory; Python would print a traceback of what it was at.
Nothing that takes time is imported here. Each command's script calls the `main` of its module in this folder.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

__all__ = ["run"]

_INTERRUPTED = 130


def run(module: str, *, serves: bool = False) -> None:
    """Imports a command and runs it.

    Args:
        module: Where its `main` is, by name: to import it is what takes the time.
        serves: Whether it runs a server for others, whose log tells in gRPC's words why it turned a client away.
    """
    _open_what_is_closed()
    if not serves:
        # gRPC's C++ core otherwise writes lines of its own when a connection is lost; it reads this as it is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    before = signal.getsignal(signal.SIGINT)
    # Whoever starts it with interrupts ignored, as nohup and a shell's & do, goes on ignoring them.
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    main = importlib.import_module(module).main
    signal.signal(signal.SIGINT, before)
    main()


def _open_what_is_closed() -> None:
    """Gives a command that was started without stdout or the like (`>&-`) one that leads nowhere.

    Otherwise the next file that it opens would be taken for that.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Lasts as long as the process, and takes the lowest number that is free: the closed one's.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _end(_signal: int, _frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)  # nothing has been begun that would have to be put in order
