"""Options that many commands have: fields of a dataclass, given to a command as one parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

__all__ = ["Version", "gives_options", "option"]


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        name = context.find_root().info_name
        try:
            typer.echo(f"{name} {version('cn-clip-triton')}")
        except PackageNotFoundError:
            typer.echo(f"{name} (run from a source tree)")
        raise typer.Exit


def option(help: str, *names: str, panel: str | None = None, metavar: str | None = None, **more: Any) -> Any:
    """Returns `typer.Option(...)`, as every option is declared; of a default that is None, `help` tells.

    Args:
        help: What the option is for.
        names: How it is written; by default as its parameter.
        panel: The heading under which help shows it.
        metavar: What stands for its value there.
        more: What else `typer.Option` takes.
    """
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, **more)


Version = Annotated[bool, option("Print the version and exit.", "--version", callback=_print_version, is_eager=True)]
"""An option that each of the five commands has."""


def gives_options(
    kind: type,
    parameter: str,
    *,
    last: bool = False,
    wanted: Callable[[Field[Any]], bool] = lambda _: True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns what gives a command an option for each field of a dataclass, and hands them over as one parameter.

    Typer reads a command's options off its signature; this one's has the parameter written out.

    Args:
        kind: The dataclass. Its fields are annotated with `option`; what is no option keeps its default.
        parameter: The command's parameter that gets an instance.
        last: Whether these options stand after all of the command's own, and not where the parameter does.
        wanted: Which fields this command has.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = _annotations(command)
        types = get_type_hints(kind, include_extras=True)
        shared = [
            inspect.Parameter(
                declared.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(declared),
                annotation=types[declared.name],
            )
            for declared in fields(kind)
            if wanted(declared)
        ]
        parameters: list[inspect.Parameter] = []
        for name, declared in inspect.signature(command).parameters.items():
            if name != parameter:
                parameters.append(declared.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            elif not last:
                parameters += shared
        if last:
            parameters += shared

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            options = {one.name: given.pop(one.name) for one in shared if one.name in given}
            command(**given, **{parameter: kind(**options)})

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapper

    return decorate


def _annotations(command: Callable[..., None]) -> dict[str, Any]:
    """Returns the annotations of a command's parameters, as they are written.

    Python 3.10 puts `Optional[...]` around those whose default is None, and with it around typer's `Annotated`.
    """
    found = get_type_hints(command, include_extras=True)
    for name, hint in found.items():
        inner = [one for one in get_args(hint) if one is not type(None)]
        if get_origin(hint) is Union and len(inner) == 1 and get_origin(inner[0]) is Annotated:
            found[name] = inner[0]
    return found


def _default(declared: Field[Any]) -> Any:
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return inspect.Parameter.empty if declared.default is MISSING else declared.default
