"""Options of a dataclass, given to a command as one parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Optional

import pytest
import typer
from cnclip_console import gives_options, option, plain_app
from typer.testing import CliRunner


@dataclass(frozen=True, kw_only=True)
class Oven:
    heat: Annotated[int | None, option("How hot.", panel="Oven")] = None
    trays: Annotated[list[str], option("Which.", "--tray")] = field(default_factory=lambda: ["a"])
    secret: Annotated[int, option("Not for every command.")] = 7


def run(arguments: list[str], *, last: bool = False, few: bool = False) -> tuple[str, str]:
    app = plain_app()
    wanted = (lambda one: one.name != "secret") if few else (lambda one: True)

    @app.command()
    @gives_options(Oven, "oven", last=last, wanted=wanted)
    def bake(*, before: str = "b", oven: Oven, after: str = "c") -> None:
        print(before, oven, after)

    runner = CliRunner()
    done = runner.invoke(app, arguments, env={"COLUMNS": "80"})
    return done.output, runner.invoke(app, ["--help"], env={"COLUMNS": "80"}).output


def test_the_command_gets_an_instance() -> None:
    assert run([])[0] == f"b {Oven()} c\n"
    given = ["--after", "z", "--heat", "200", "--tray", "x", "--tray", "y", "--secret", "1"]
    assert run(given)[0] == f"b {Oven(heat=200, trays=['x', 'y'], secret=1)} z\n"


@pytest.mark.parametrize(("last", "order"), [(False, ["before", "tray", "after"]), (True, ["before", "after", "tray"])])
def test_they_stand_where_the_parameter_does_or_last(last: bool, order: list[str]) -> None:
    text = run([], last=last)[1]
    places = [text.index(f"--{name}") for name in order]
    assert places == sorted(places)


def test_what_is_not_wanted_keeps_its_default() -> None:
    output, text = run([], few=True)
    assert output == f"b {Oven()} c\n"
    assert "--secret" not in text
    assert "No such option" in run(["--secret", "1"], few=True)[0]


def test_python_3_10_hides_no_argument() -> None:
    """There `get_type_hints` puts `Optional` around what has None for a default, and typer saw no argument inside."""
    app = plain_app()

    def bake(*, oven: Oven, paths: list[str] | None = None) -> None:
        print(paths)

    hidden = Optional[Annotated[list[str] | None, typer.Argument()]]  # noqa: UP045 - as that Python has it
    bake.__annotations__ = {"oven": Oven, "paths": hidden}
    app.command()(gives_options(Oven, "oven")(bake))
    done = CliRunner().invoke(app, ["a", "b"])
    assert (done.exit_code, done.output) == (0, "['a', 'b']\n")
