"""What every subcommand of `cnclip` shares: its options, how it reads items, and how it ends."""

from __future__ import annotations

import io
import locale
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import typer
from cnclip_console import told, visible

from cnclip_client import BadFile, CnclipError, JobRefused, MissingExtra, TooManyFailures
from cnclip_client._replacing import replacing, takes
from cnclip_client.features._npy import ids_of_npy
from cnclip_client.sources._sniff import first_bytes, require_lines

__all__ = [
    "SOME_FAILED",
    "AsJson",
    "Normalize",
    "Verbose",
    "as_typed",
    "complain",
    "items_given",
    "reporting",
    "require_unread",
    "usage",
    "write",
    "writing",
]

SOME_FAILED, _USAGE, _SERVER, _TOO_MANY_FAILED, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 3, 4, 130, 141

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, and show tracebacks of errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Normalize = Annotated[
    bool, typer.Option("--normalize/--no-normalize", help="Whether to divide each feature by its length.")
]


@contextmanager
def reporting(verbose: bool, command: str = "cnclip") -> Iterator[None]:
    """Turns errors into one line on stderr, which begins with the command, and an exit status."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        yield
        sys.stdout.flush()
    except typer.BadParameter as error:
        complain(error.message, command)
        raise typer.Exit(_USAGE) from error
    except (CnclipError, OSError, KeyboardInterrupt) as error:
        if verbose:
            traceback.print_exc()
        raise typer.Exit(_status(error, command)) from error


@contextmanager
def usage() -> Iterator[None]:
    """Reports what does not go together as wrong usage."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _status(error: BaseException, command: str) -> int:
    """Says what there is to say of an error and returns the exit status."""
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError:
            # The interpreter would flush stdout once more as it ends, complain, and end with a status of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return _PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    complain(told(error), command)
    if isinstance(error, TooManyFailures):
        return _TOO_MANY_FAILED
    return _USAGE if isinstance(error, OSError | BadFile | MissingExtra | JobRefused) else _SERVER


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


def complain(message: str, command: str = "cnclip") -> None:
    """Prints one line on stderr, whatever names of files or words of a server's are in it."""
    typer.echo(visible(f"{command}: {message}"), err=True)


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
