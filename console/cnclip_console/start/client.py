"""How `cnclip` begins: in UTF-8, whatever the locale."""

import io
import os
import sys

from cnclip_console.start import run

__all__ = ["main"]


def main() -> None:
    """Runs `cnclip`."""
    _be_utf8()
    run("cnclip_client._cli")


def _be_utf8() -> None:
    """Starts the command anew in Python's UTF-8 mode, where the locale's charset is another one; before it is imported.

    What is read and written is UTF-8 in any locale, names of files as a rule too; and no charset of a locale's must end
    the command for a letter of its help's.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding().lower() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - this very command
    for stream in (sys.stdout, sys.stderr):
        # Whoever asks for another one with PYTHONIOENCODING gets what it lacks escaped.
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")
