"""What `--help` and shells show: the same two columns everywhere, an example for each command, words whole."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer.main
from cnclip_console import plain_app
from typer.testing import CliRunner

from tests.apps import APPS
from tests.commands import MAINS, run_command, run_script
from tests.conftest import ASCII, starts_in_ascii


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = [path for name, app in APPS.items() for path in commands(typer.main.get_command(app), (name,))]


def at(path: tuple[str, ...]) -> Any:
    command: Any = typer.main.get_command(APPS[path[0]])
    for name in path[1:]:
        command = command.commands[name]
    return command


def shown(path: tuple[str, ...], columns: str = "80") -> str:
    result = CliRunner().invoke(
        APPS[path[0]], [*path[1:], "--help"], env={"COLUMNS": columns, "TERMINAL_WIDTH": columns}
    )
    assert result.exit_code == 0, result.output
    return result.output


def columns_of(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_fits_80_columns_with_words_whole(path: tuple[str, ...]) -> None:
    text = shown(path)
    assert [line for line in text.splitlines() if columns_of(line) > 80] == []
    assert "…" not in text
    written = set(re.findall(r"--[a-z0-9-]*[a-z0-9]", text))
    for parameter in at(path).params:
        if parameter.param_type_name == "option":
            assert set(parameter.opts + parameter.secondary_opts) - {"-v", "-o", "-f"} <= written


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_command_has_an_example_that_its_parser_takes(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build/repository").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = shown(path)
    examples = re.search(r"^Examples?:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert examples is not None
    lines = examples[1].replace("\\\n", " ").splitlines()
    assert len(lines) >= 1
    for line in lines:
        words = shlex.split(line)
        command, rest = at((words[0],)), words[1:]
        taken = [words[0]]
        while below := getattr(command, "commands", None):
            command, rest = below[rest[0]], rest[1:]
            taken.append(words[len(taken)])
        assert tuple(taken[: len(path)]) == path
        command.make_context(words[0], rest)


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("utf8", [True, pytest.param(False, marks=starts_in_ascii)])
def test_help_is_plain_text_wherever_it_goes(name: str, utf8: bool) -> None:
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"}
    if utf8:
        done = run_command(name, "--help", env={**own, "NO_COLOR": "1"})
    else:  # of which a Python takes note as it starts
        command = [sys.executable, "-c", f"from {MAINS[name]} import main; main()", "--help"]
        done = subprocess.run(command, capture_output=True, env={**own, **ASCII}, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("utf-8")
    assert "\x1b" not in text
    assert text.startswith("Usage: ")
    assert not re.search("[─│╭╮╰╯]", text)


@pytest.mark.parametrize("name", APPS)
def test_each_command_tells_its_version(name: str) -> None:
    result = CliRunner().invoke(APPS[name], ["--version"], prog_name=name)
    assert (result.exit_code, result.output) == (0, f"{name} {version('cn-clip-triton')}\n")


def test_options_stand_under_their_headings_in_the_order_of_the_first() -> None:
    app = plain_app()

    @app.command()
    def bake(
        cake: str,
        oven: Annotated[str, typer.Option(help="Which.", rich_help_panel="Heat")] = "a",
        quiet: Annotated[bool, typer.Option(help="Say nothing.")] = False,
        minutes: Annotated[int, typer.Option(help="How long.", rich_help_panel="Time")] = 3,
        grill: Annotated[bool, typer.Option(help="From above.", rich_help_panel="Heat")] = False,
    ) -> None:
        """Bake a cake, well-done.

        Example:
          bake    a-cake
        """

    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    headings = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert headings == ["Example", "Arguments", "Heat", "Time", "Other options"]
    heat = text[text.index("\nHeat:") : text.index("\nTime:")]
    assert "--oven" in heat
    assert "--grill" in heat
    assert "--quiet" in text[text.index("\nOther options:") :]
    assert "\nExample:\n  bake    a-cake\n" in text


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("cnclip extract images --over", "--overwrite"),
        ("cnclip-build repository --precision int", "int8"),
        ("cnclip-serve --grpc", "--grpc-port"),
        ("cnclip-bench gpu", "gpu-report"),
    ],
)
def test_bash_completes_what_is_typed(typed: str, completed: str, tmp_path: Path) -> None:
    """With the script that the command itself gives, in a bash of its own."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    name = typed.split()[0]
    command = tmp_path / name
    # As pip writes them: the path may have blanks.
    begin = f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\n"
    command.write_text(f"{begin}from {MAINS[name]} import main\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    asked = {"PATH": os.environ["PATH"], f"_{name.upper().replace('-', '_')}_COMPLETE": "source_bash"}
    given = run_script(
        f"import os, sys; from {MAINS[name]} import main; sys.argv[0] = {name!r}; os.environ.update({asked}); main()",
        name=name,
    )
    script = given.stdout.decode() + (
        f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        f"$(complete -p {name} | sed -E 's/.* -F ([^ ]+) .*/\\1/') {name}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=own, timeout=60, check=False)
    assert done.stdout.split() == [completed], done.stderr
