"""Help in two columns of plain text: the same on a terminal, in a pipe, without colour and in any locale.

Typer's own, in boxes, cuts the names of options at 80 columns and leaves 17 of them to what is said of each.
"""

from __future__ import annotations

import inspect
import os
import select
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["plain_app"]

_NAMES_WIDTH = 26
_PIPE_CLOSED = 141
_OTHER = "Other options"
_EXAMPLES = ("Example:", "Examples:")


class _Command(TyperCommand):
    """A command that tells of its options by `rich_help_panel`, and of examples as they are typed.

    Where the reader of its output goes away, as `head` does, it ends without a word and with the status of SIGPIPE.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            if not _has_no_reader(sys.stdout):
                raise  # another pipe's
            # What is left would be written once more as the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_PIPE_CLOSED) from None
        return done

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self.help, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self.get_params(ctx), ctx, formatter)


class _Group(TyperGroup):
    """Likewise a command with commands below it."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self.help, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None)
            heading = panel if isinstance(panel, str) else "Commands"
            sections.setdefault(heading, []).append((name, _words(_paragraphs(command.help)[:1])))
        _write_sections(sections, formatter)
        _write_options(self.get_params(ctx), ctx, formatter)


class _App(typer.Typer):
    """A `typer.Typer` whose commands are of these kinds."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=_Command, **settings)


def plain_app(**settings: Any) -> typer.Typer:
    """Returns a `typer.Typer` with help in plain text and options to complete what is typed in a shell.

    A paragraph of a command's docstring that begins with `Example:` or `Examples:` is shown as it stands; others are
    wrapped. Options are grouped by their `rich_help_panel`, commands of a group too.

    Args:
        settings: Of `typer.Typer`.
    """
    return _App(cls=_Group, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


def _has_no_reader(pipe: Any) -> bool:
    looked = select.poll()
    looked.register(pipe, 0)
    return any(event & select.POLLERR for _, event in looked.poll(0))


def _paragraphs(text: str | None) -> list[str]:
    return inspect.cleandoc(text or "").split("\n\n")


def _words(paragraphs: Iterable[str]) -> str:
    return " ".join(" ".join(paragraphs).split())


def _write_text(text: str | None, formatter: Any) -> None:
    for paragraph in _paragraphs(text):
        formatter.write_paragraph()
        lines = paragraph.splitlines()
        if not paragraph.startswith(_EXAMPLES):
            lines = _wrapped(paragraph, formatter.width)
        formatter.write("".join(f"{line}\n" for line in lines))


def _write_options(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    """Writes arguments and options as they were declared; their panels in the order of the first option of each."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    grouped = False
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        if parameter.param_type_name == "argument":
            heading = "Arguments"
        elif isinstance(panel, str):
            heading, grouped = panel, grouped or "Options" not in sections
        else:
            heading = _OTHER if grouped else "Options"
        sections.setdefault(heading, []).append(record)
    others = sections.pop(_OTHER, [])
    _write_sections({**sections, _OTHER: others}, formatter)


def _write_sections(sections: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    width = min(max((len(name) for rows in sections.values() for name, _ in rows), default=0), _NAMES_WIDTH)
    for heading, rows in sections.items():
        if not rows:
            continue
        with formatter.section(heading):
            for name, text in rows:
                lines = _wrapped(text, formatter.width - width - 4)
                if len(name) > width:
                    formatter.write(f"  {name}\n")
                    name = ""
                formatter.write(f"  {name:<{width}}  {lines[0] if lines else ''}".rstrip() + "\n")
                formatter.write("".join(f"{'':{width + 4}}{line}\n" for line in lines[1:]))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(_words([text]), width, break_long_words=False, break_on_hyphens=False)
