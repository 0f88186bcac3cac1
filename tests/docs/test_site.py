"""The documentation site: every page is on it, in both languages, and whatever is wrong with one stops the build."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = {path.stem for path in (ROOT / "docs").glob("*.md") if not path.name.endswith(".zh.md")} - {"index"}
PUBLIC = {
    "api/client": ["cnclip_client"],
    "api/jobs": ["cnclip_client.sources", "cnclip_client.extraction", "cnclip_client.features"],
    "api/retrieval": [
        "cnclip_client.retrieval",
        "cnclip_client.index",
        "cnclip_client.evaluation",
        "cnclip_client.classification",
        "cnclip_client.report",
    ],
    "api/clusters": ["cnclip_client.ray", "cnclip_client.spark"],
    "api/server": ["cnclip_server"],
}
# What two modules show is told of where it is at home.
AT_HOME = {"cnclip_client.retrieval.Features", "cnclip_client.retrieval.read_features"}

STAND_IN = """\
# 出了故障会怎样？

[English](faults.md)

任何一步失败，都会说明原因。另见[部署](../deploy/README.md)、[批处理](batch-jobs.md)、[下文](#why)。

<a id="why"></a>

## 为什么？

见上文。
"""


def sections() -> list[tuple[str, str, list[str]]]:
    path = list(sys.path)
    try:
        found: list[tuple[str, str, list[str]]] = runpy.run_path(str(ROOT / "docs/_site/conf.py"))["sections"]
    finally:
        sys.path[:] = path
    return found


def test_every_page_has_its_place() -> None:
    listed = [page for _, _, pages in sections() for page in pages]
    assert sorted(listed) == sorted([*PAGES, *(f"api/{path.stem}" for path in (ROOT / "docs/api").glob("*.rst"))])


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_files_that_pages_link_to_are_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (page.parent / link).exists(), link


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one page translated for this test, whose site is built."""
    folder = tmp_path_factory.mktemp("site") / "checkout"
    hidden = shutil.ignore_patterns(".git", ".venv", "build", ".*_cache", "__pycache__", "demo")
    shutil.copytree(ROOT, folder, ignore=hidden)
    (folder / "docs/faults.zh.md").write_text(STAND_IN, encoding="utf-8")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "docs", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500, check=False)


def pages(site: Path) -> list[Path]:
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    assert len(found) > 2 * len(PAGES)
    return found


def text(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_is_translated_is_chinese_and_all_else_english(checkout: Path) -> None:
    site = checkout / "build/site"
    assert "<h1>出了故障会怎样？" in text(site, "zh/faults")
    assert "<h1>What happens when something fails" in text(site, "faults")
    assert "<h1>How is it built?" in text(site, "zh/architecture")
    assert not list(site.rglob("*.zh.html"))
    for chinese, page in (("zh/", "faults"), ("zh/", "api/client")):
        up = "../" * page.count("/")
        assert f'href="{up}zh/{page}.html" hreflang="zh-CN"' in text(site, page)
        assert f'href="{up}../{page}.html" hreflang="en"' in text(site, chinese + page)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_links_lead_to_pages_to_the_repository_and_to_the_other_language(checkout: Path) -> None:
    page = text(checkout / "build/site", "zh/faults").partition("<h1>")[2]
    assert 'href="../faults.html"' in page.partition("</section>")[0]
    assert re.search(r'href="https://github\.com/\w+/cn-clip-triton/blob/main/deploy/README\.md"', page)
    assert 'href="batch-jobs.html"' in page
    assert 'href="#why"' in page
    assert 'id="why"' in page
    for built in pages(checkout / "build/site"):
        for link in re.findall(r'href="([^"#:]+)[#"]', built.read_text(encoding="utf-8")):
            assert (built.parent / link.partition("?")[0]).exists(), (built.name, link)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_fetched_from_elsewhere(checkout: Path) -> None:
    for built in pages(checkout / "build/site"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", built.read_text(encoding="utf-8")):
            assert "//" not in tag.replace("http://www.w3.org/2000/svg", "") or 'rel="canonical"' in tag, tag


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_public_name_is_forgotten(checkout: Path) -> None:
    for page, modules in PUBLIC.items():
        html = text(checkout / "build/site", page)
        for name in modules:
            for one in importlib.import_module(name).__all__:
                if f"{name}.{one}" not in AT_HOME:
                    assert f'id="{name}.{one}"' in html, f"{name}.{one}"
        assert "system-message" not in html


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_docstrings_are_read_as_they_are_meant(checkout: Path) -> None:
    client = text(checkout / "build/site", "api/client")
    assert re.search(r"highlight-python.*?localhost:8001", client, re.DOTALL)
    properties = client.partition('id="cnclip_client.Client.info"')[2].partition("</dd></dl>")[0]
    assert re.search("Raises.*CheckpointMismatch", properties, re.DOTALL)
    assert "<table" in text(checkout / "build/site", "api/jobs")
    # Of the two errors of that name each page means its own.
    builder = text(checkout / "build/site", "api/builder")
    assert "#cnclip_builder.errors.SettingError" in builder
    assert "#cnclip_builder.reference.Reference" in builder  # whoever compares a server makes one
    assert "#cnclip_server.SettingError" in text(checkout / "build/site", "api/server")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_chinese_is_found_by_any_of_its_phrases(checkout: Path) -> None:
    """Any two neighbours are in the index, and the browser asks for such; Node stands in for it."""
    site = checkout / "build/site"
    index = (site / "zh/searchindex.js").read_text(encoding="utf-8")
    for pair in ("故障", "失败", "明原"):
        assert f"{json.dumps(pair)}:" in index
    code = (site / "zh/_static/language_data.js").read_text(encoding="utf-8")
    assert "splitQuery" in code
    if node := shutil.which("node"):
        script = f"globalThis.window = globalThis\n{code}\nconsole.log(JSON.stringify(['说明原因', 'ViT模型', '错', 'retry deadline'].map(splitQuery)))"
        done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
        expected = '[["说明","明原","原因"],["ViT","模型"],["错"],["retry","deadline"]]'
        assert done.stdout.strip() == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_link_to_nowhere_stops_the_build(checkout: Path) -> None:
    page = checkout / "docs/gpu.md"
    before = page.read_text(encoding="utf-8")
    try:
        page.write_text(f"{before}\n[x](nowhere.md), [y](serving.md#no-such-heading)\n", encoding="utf-8")
        built = build(checkout)
    finally:
        page.write_text(before, encoding="utf-8")
    assert built.returncode != 0
    assert "nowhere.md" in built.stderr
    assert "no-such-heading" in built.stderr
