"""A process that decodes images for a client: run by its path, it answers on its standard output.

A process and not a thread, since threads of one Python process hold each other up; one of its own and not a fork, since
gRPC bears none; and one in which Pillow's settings, which hold for a whole process, are ours to set.

A message is its length, in four bytes of little endian, and so many bytes. In comes first the settings, JSON, and then
image files. Out comes first who we are, JSON, and then for each file one byte and, behind it, its pixels (`+`), why it
has none (`-`), or why it cannot be decoded here and now (`!`). It ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import warnings
from typing import BinaryIO


def main() -> None:
    """Answers until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's affair, which then closes our input
    files = sys.stdin.buffer
    # C libraries print: what they say must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    settings = json.loads(_read(files) or b"{}")
    try:
        from cnclip_machine import usable_cores
        from PIL import __version__

        from cnclip_pixels import (
            BadImage,
            decode_pixels,
            decoding_memory,
            image_formats,
            limit_pixels,
            resizer,
        )

        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels are what counts
        formats = image_formats(settings["image_formats"])
        limit_pixels(settings["max_image_pixels"])
        memory = decoding_memory(usable_cores())  # a process a core, unless it was asked for fewer
        about = {"pillow": __version__, "resizer": resizer(), "cores": usable_cores()}
    except Exception as error:  # whatever it is, the client is to tell it
        _write(answers, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    _write(answers, json.dumps(about).encode())
    resolution, reduced = settings["resolution"], settings["decoding"] == "reduced"
    while (encoded := _read(files)) is not None:
        try:
            pixels = decode_pixels(encoded, resolution, reduced=reduced, formats=formats, memory=memory)
            answer = b"+" + pixels.tobytes()
        except BadImage as error:
            answer = b"-" + str(error).encode("utf-8", "replace")
        except (MemoryError, OSError) as error:
            answer = b"!" + str(error).encode("utf-8", "replace")
        _write(answers, answer)


def _read(files: BinaryIO) -> bytes | None:
    """The next message, or None where there is none, or less than one."""
    head = files.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    message = files.read(size)
    return message if len(message) == size else None


def _write(answers: BinaryIO, message: bytes) -> None:
    answers.write(struct.pack("<I", len(message)))
    answers.write(message)
    answers.flush()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the client is gone
        os._exit(0)
