"""File names and output where the locale's charset is not UTF-8."""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Starts this command again in Python's UTF-8 mode, unless file names are UTF-8 already.

    Names on disk are UTF-8 whatever the locale says, and torch, onnx and ONNX Runtime encode paths in it: under another
    charset they would open other files. The processes of stages inherit the mode. What is printed stays in the
    terminal's charset, with escapes for what that lacks; under C and POSIX, which say nothing of it, it is UTF-8.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    charset = (sys.stdout.encoding if sys.stdout is not None else None) or "ascii"
    if "PYTHONIOENCODING" not in os.environ and charset.lower() not in ("ascii", "us-ascii", "ansi_x3.4-1968", "646"):
        os.environ["PYTHONIOENCODING"] = f"{charset}:backslashreplace"
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this very command
