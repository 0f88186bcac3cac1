"""docs/architecture.md speaks of the house as it stands, in the order that import-linter holds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = {"builder": ROOT / "builder" / "cnclip_builder", "client": ROOT / "client" / "cnclip_client"}


def rows(package: str) -> list[set[str]]:
    """The rooms that the page's table names, a set for each row, from the top."""
    header = f"| folder of `{PACKAGES[package].relative_to(ROOT)}` |"
    table = PAGE.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    return [set(re.findall(r"`([^`]+)`", row.split("|")[1])) for row in table]


def rooms(folder: Path) -> set[str]:
    return {
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in folder.iterdir()
        if (entry / "__init__.py").exists() or (entry.suffix == ".py" and entry.name != "__init__.py")
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_row_and_no_row_is_of_a_room_that_is_gone(package: str) -> None:
    named = [room for row in rows(package) for room in row]
    assert sorted(named) == sorted(rooms(PACKAGES[package]))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tables_order_is_the_one_that_is_held(package: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    name = PACKAGES[package].name
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [name]]
    floor = {room.strip(): number for number, layer in enumerate(layers) for room in re.split("[|:]", layer)}
    numbers = [{floor[room.removesuffix("/").removesuffix(".py")] for room in row} for row in rows(package)]
    assert all(len(row) == 1 for row in numbers)
    assert numbers == sorted(numbers, key=min)


def test_no_package_reaches_into_anothers_own_modules() -> None:
    """A command's script names the module that it starts."""
    reached = [
        (str(path.relative_to(ROOT)), found[0])
        for path in ROOT.glob("*/cnclip_*/**/*.py")
        for found in re.finditer(r"\b(cnclip_[a-z_]+)(?:\.[a-z]\w*)*\._[a-z]\w*", path.read_text(encoding="utf-8"))
        if found[1] not in path.parts and path.parent.name != "start"
    ]
    assert reached == []


def test_paths_on_the_page_are_there() -> None:
    folders = [ROOT, *PACKAGES.values()]
    paths = set(re.findall(r"`([\w./-]+(?:/|\.py|\.toml))`", PAGE)) - {"_open.py", "model.py"}
    assert {path for path in paths if not any((folder / path).exists() for folder in folders)} == set()
