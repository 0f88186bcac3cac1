"""The commands and code of the README and the pages, run as they stand: a documented command that fails is a defect."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from cnclip_builder.build import build_repository
from cnclip_builder.parity.samples import sample_images
from cnclip_client.sources import text_source
from cnclip_server import TritonServer

from tests.apps import APPS
from tests.conftest import ROOT, demo_request

# Those in Chinese have the same commands: tests/test_translations.py.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if ".zh" not in page.suffixes)]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path, *which: int) -> list[str]:
    """The lines of all `sh` blocks, or of those that are counted, comments taken off and continued lines joined."""
    all_blocks = blocks(page, "sh")
    chosen = [all_blocks[number] for number in which] or all_blocks
    lines = "\n".join(chosen).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines) if line]


def parse(words: list[str]) -> None:
    """Has the command's own parser read the words, without running anything."""
    command, rest = typer.main.get_command(APPS[words[0]]), words[1:]
    while below := getattr(command, "commands", None):
        command, rest = below[rest[0]], rest[1:]
    command.make_context(words[0], rest)


DOCUMENTED = [(page.name, line) for page in PAGES for line in commands(page)]


def test_there_is_something_to_run() -> None:
    assert len([line for page, line in DOCUMENTED if page == "README.md"]) >= 6
    assert len([line for page, line in DOCUMENTED if page in ("building.md", "client.md", "batch-jobs.md")]) > 30


@pytest.mark.parametrize(("page", "line"), DOCUMENTED)
def test_documented_options_exist(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of ours that a page shows, `make` targets opened up, is one that its parser accepts."""
    # What must be there already, for options that look.
    for folder in ("plans", "photos", "build/repository"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "captions.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    if line.startswith("make "):
        # Another folder: one of another Python than a page's PYTHON= is refused.
        dry = ["make", "--dry-run", "--always-make", "VENV=.absent", *shlex.split(line)[1:]]
        recipe = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        lines = recipe.replace("\\\n", " ").replace(".absent/bin/", "").splitlines()
    else:
        lines = [line]
    for part in (part for whole in lines for part in re.split(r"\s[|;&]+\s", whole)):
        words = [word for word in shlex.split(part) if word not in (">", "<")]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] in APPS:
            parse(words)
        elif words[:2] == ["pip", "install"]:
            extras = [extra for listed in re.findall(r"\[(.*)\]", part) for extra in listed.split(",")]
            assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)


@pytest.fixture(scope="module")
def desk(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the files that the README names, and the address of the demo model served as `vit-b-16`."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(demo_artefacts, folder / "build/artefacts/vit-b-16")
    samples = list(sample_images().values())
    for name, data in zip(("a.jpg", "b.png", "photos/1.jpg", "photos/2.jpg"), samples * 2, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    captions = ({"text_id": row, "text": "一只鸟", "image_ids": [f"{row}.jpg"]} for row in (1, 2))
    (folder / "captions.jsonl").write_text("".join(json.dumps(caption) + "\n" for caption in captions))
    build_repository(demo_request(folder / "build", name="vit-b-16"))
    with TritonServer(folder / "build/repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        yield folder, server.grpc_url


def run(command: str, folder: Path, url: str = "") -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CNCLIP_URL": url,
        "LC_ALL": "C.UTF-8",
    }
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


@pytest.mark.triton
def test_the_clients_commands(desk: tuple[Path, str]) -> None:
    """Those of the README that ask a server, and the first of two pages, in their order, one after another in one folder."""
    folder, url = desk
    lines = [*commands(ROOT / "README.md"), *commands(ROOT / "docs/client.md", 0)]
    lines += commands(ROOT / "docs/batch-jobs.md", 1)
    asking = [line for line in lines if re.search(r"(^|\| )cnclip ", line)]
    assert [line.split("cnclip ")[1].split()[0] for line in asking] == [
        *("extract", "extract", "search"),
        *("features", "features", "similarity", "classify"),
        *("extract", "extract", "search", "evaluate"),
    ]
    for line in asking:
        run(line, folder, url)


@pytest.mark.parametrize("charset", ["utf-8-sig", "gb18030"])
def test_a_spreadsheets_table_becomes_jsonl(tmp_path: Path, charset: str) -> None:
    (line,) = (line for line in commands(ROOT / "docs/batch-jobs.md") if line.startswith("python -c"))
    (tmp_path / "captions.csv").write_bytes('编号,描述\r\n7,"一只猫，和狗"\r\n'.encode(charset))
    run(line.replace("utf-8-sig", charset), tmp_path)
    source = text_source(tmp_path / "captions.jsonl", id_column="编号", column="描述")
    assert [(item.id, item.value) for item in source.items()] == [("7", "一只猫，和狗")]


@pytest.mark.triton
def test_the_python_code(desk: tuple[Path, str]) -> None:
    folder, url = desk
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert "localhost:8001" in code
    out = run(shlex.join([sys.executable, "-c", code.replace("localhost:8001", url)]), folder)
    assert out.strip()
