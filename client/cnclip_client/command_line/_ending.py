"""How a command ends: errors in one line on stderr, and an exit status."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from cnclip_console import option, told, visible

from cnclip_client._exceptions import BadFile, CnclipError, JobRefused, MissingExtra, TooManyFailures

__all__ = ["SOME_FAILED", "Verbose", "complain", "reporting", "usage"]

SOME_FAILED, _USAGE, _SERVER, _TOO_MANY_FAILED, _INTERRUPTED, _PIPE_CLOSED = 1, 2, 3, 4, 130, 141

Verbose = Annotated[bool, option("Log what happens, and show tracebacks of errors.", "--verbose", "-v")]


@contextmanager
def reporting(verbose: bool, command: str = "cnclip") -> Iterator[None]:
    """Turns errors into one line on stderr, which begins with the command, and an exit status."""
    handler = _Stderr()
    handler.setFormatter(_Visible("%(name)s: %(message)s" if verbose else f"{command}: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
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


class _Stderr(logging.Handler):
    """Writes to what is stderr at that moment: a progress bar takes its place, to be drawn below what is written."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Visible(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        return visible(super().formatMessage(record))


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


def complain(message: str, command: str = "cnclip") -> None:
    """Prints one line on stderr, whatever names of files or words of a server's are in it."""
    typer.echo(visible(f"{command}: {message}"), err=True)
