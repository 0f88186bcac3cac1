"""What subcommands of `cnclip` share: options, and how they read items and write what they found."""

from __future__ import annotations

import io
import locale
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import typer
from cnclip_console import option

from cnclip_client._replacing import replacing, takes
from cnclip_client.command_line import complain
from cnclip_client.features._npy import ids_of_npy
from cnclip_client.sources._sniff import first_bytes, require_lines

__all__ = ["AsJson", "Normalize", "as_typed", "items_given", "require_unread", "write", "writing"]

AsJson = Annotated[bool, option("Print JSON.", "--json")]
Normalize = Annotated[bool, option("Whether to divide each feature by its length.", "--normalize/--no-normalize")]


def items_given(given: list[str] | None, file: str | None) -> Iterable[str]:
    """Returns the arguments, or else the lines of a file or of standard input, read as they are needed."""
    if given and file:
        raise typer.BadParameter("give items or --file, not both")
    if given:
        return given
    if file in (None, "-"):
        if sys.stdin.isatty():
            complain("reading lines from the terminal; end with Ctrl-D")
        return _read_lines(sys.stdin.buffer)
    path = Path(str(file))
    try:
        if path.is_file():  # a pipe is read only once
            require_lines(path, first_bytes(path), "an item", "a file of lines", "pipe it into --file -")
        return _read_lines(path.open("rb"))
    except OSError as error:
        raise typer.BadParameter(f"--file {file}: {error.strerror}") from error


def _read_lines(stream: io.BufferedIOBase | object) -> Iterator[str]:
    # Bytes that are no UTF-8 come through as surrogates and fail as one item, not as the whole file.
    # A lone carriage return is a character of a line, as in what `extract` reads.
    with io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="\n") as lines:  # type: ignore[type-var]
        for line in lines:
            yield line.removesuffix("\n").removesuffix("\r")


def as_typed(texts: Iterable[str]) -> list[str]:
    """Returns texts of the command line: what is no UTF-8 was typed in the locale's charset, such as GBK."""
    typed = []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            with suppress(UnicodeDecodeError, LookupError):
                text = os.fsencode(text).decode(locale.nl_langinfo(locale.CODESET))
        typed.append(text)
    return typed


def write(data: bytes) -> None:
    """Prints data at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def require_unread(output: str, read: Iterable[str | Path | None]) -> None:
    """Refuses an output that would take the place of what is read for it: features, which cost hours, or a list.

    Args:
        output: A path, or `-`.
        read: Files and folders; None is none.

    Raises:
        typer.BadParameter: It is one of them, or in one; or the ids of one.
    """
    if output == "-":
        return
    for path in (Path(one) for one in read if one is not None):
        names = [ids_of_npy(path)] if path.suffix == ".npy" else []
        if any(takes(Path(output), one) for one in (path, *names)):
            raise typer.BadParameter(f"{output} would take the place of what is read of {path}: name another output")


@contextmanager
def writing(output: str) -> Iterator[IO[str]]:
    """Opens stdout, or a file that takes the named one's place once it is whole."""
    # A path that is not UTF-8 keeps its own bytes, so that it still names its file.
    if output == "-":
        with open(sys.stdout.fileno(), "w", encoding="utf-8", errors="surrogateescape", closefd=False) as file:
            yield file
        return
    with replacing(Path(output)) as raw, io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape") as file:
        yield file
