"""Options of a dataclass, given to a command as one parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
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
