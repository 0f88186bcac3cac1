"""What surrounds the code: constraints, workflows and forms, the pages of a project. Workflows can't run here; what can be
held against something is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    listed = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    listed += [one for name in ("dev", "docs", "notebooks") for one in PYPROJECT["dependency-groups"][name]]
    listed += [one for extra in project["optional-dependencies"].values() for one in extra]
    return [Requirement(one) for one in listed]


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_is_pinned_to_one_version_that_it_allows(python: str) -> None:
    """On Linux, for each Python that is supported; what has no pin would be another version next year."""
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    here |= {
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    pins: dict[str, str] = {}
    for constraint in constraints():
        if constraint.marker is None or constraint.marker.evaluate(here):
            name = canonicalize_name(constraint.name)
            (specifier,) = constraint.specifier
            assert specifier.operator == "=="
            assert name not in pins, f"{name} is pinned twice"
            pins[name] = specifier.version
    for wanted in requirements():
        if wanted.marker is not None and not wanted.marker.evaluate(here):
            continue
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{wanted} has no pin: make constraints UPGRADE= adds it"
        assert wanted.specifier.contains(pins[name], prereleases=True), (
            f"{wanted} does not allow {pins[name]}: run make constraints UPGRADE="
        )


def test_constraints_name_versions_and_nothing_else() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^-|@|--hash", text, re.MULTILINE)


def test_supported_pythons_are_the_same_everywhere() -> None:
    classified = [one.rpartition(" :: ")[2] for one in PYPROJECT["project"]["classifiers"] if "Python :: 3." in one]
    assert classified == PYTHONS
    tested = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    assert tested["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert PYPROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("dependabot", ".github/dependabot.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_are_as_their_published_schemas_have_them(schema: str, pattern: str) -> None:
    files = sorted(map(str, ROOT.glob(pattern)))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_ask_for_what_is_there_and_for_no_more_than_they_need(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        allowed = {"id-token": "write"} | ({"pages": "write"} if path.name == "docs.yml" else {})
        assert job.get("permissions", allowed) == allowed, name
        assert set(job.get("needs", [])) <= set(workflow["jobs"])
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            for target in re.findall(r"^make ([a-z0-9-]+)", step.get("run", ""), re.MULTILINE):
                dry = ["make", "--dry-run", target]
                assert subprocess.run(dry, cwd=ROOT, capture_output=True, check=False).returncode == 0, target


def test_only_what_publishes_may_speak_for_the_project() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["if"] == "github.event_name == 'push'"
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}


def test_only_main_is_published_on_the_site() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/docs.yml").read_text(encoding="utf-8"))["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["if"] == "github.event_name != 'pull_request' && github.ref == 'refs/heads/main'"


def test_dependabot_looks_where_something_is() -> None:
    for update in yaml.safe_load((ROOT / ".github/dependabot.yml").read_text(encoding="utf-8"))["updates"]:
        folder = ROOT / update["directory"].lstrip("/")
        wanted = {
            "docker": "*Dockerfile",
            "docker-compose": "compose.yaml",
            "github-actions": ".github/workflows/*.yml",
        }[update["package-ecosystem"]]
        assert list(folder.glob(wanted)), update


def test_the_version_is_the_same_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_command_begins_where_ctrl_c_is_quiet() -> None:
    scripts = PYPROJECT["project"]["scripts"]
    assert {target.partition(":")[0].rpartition(".")[0] for target in scripts.values()} == {"cnclip_console.start"}


def test_the_owners_address_is_in_one_place() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    own = re.compile(r"github\.com/(?!YOU/)[\w.-]+/cn-clip-triton")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    having = {name for name in names if own.search((ROOT / name).read_bytes().decode("utf-8", "ignore"))}
    assert having == {"pyproject.toml"}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_commands_and_links_of_the_pages_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for target in re.findall(r"^make ([a-z0-9-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target


def dry_run(tmp_path: Path, *arguments: str, driver: str = "580.65.06") -> str:
    """What make would do where there is a GPU and no virtual environment."""
    command = tmp_path / "nvidia-smi"
    command.write_text(
        f"#!/bin/sh\ncase $1 in -L) echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)';; *) echo {driver}; echo {driver};; esac\n"
    )
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    make = ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", *arguments]
    return subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_report_of_a_gpu_installs_what_decodes_on_it(tmp_path: Path) -> None:
    told = dry_run(tmp_path, "gpu-report")
    assert told.index(".[gpu,builder,") < told.index("'.[gpu-decode]'") < told.index("cnclip-bench gpu-report")
    assert ".[gpu-decode]" not in dry_run(tmp_path, "repo")


def test_an_old_driver_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    """With CUDA 13's ONNX Runtime everything was built, and then no server came up."""
    told = dry_run(tmp_path, "repo", driver="550.54.15")
    said = (
        "ONNX Runtime here needs driver 580, and this is 550. Afterwards, but for Python 3.10: "
        f"{tmp_path}/venv/bin/pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0'"
    )
    assert said in told
    assert told.index(said) < told.index(".[gpu,builder,")
    assert "needs driver" not in dry_run(tmp_path, "repo")


def test_another_tensorrt_brings_nothing_of_the_tests(tmp_path: Path) -> None:
    told = dry_run(tmp_path, "repo", "TENSORRT=10.13.3")
    assert told.index(".[gpu,builder,") < told.index("'tensorrt==10.13.3.*'") < told.index("cnclip-build repository")
    assert "--group dev" not in told


def test_what_an_environment_has_for_others_names_no_model() -> None:
    """WSL sets NAME to the machine's name; CHECKPOINT=my.pt before make may be meant, and must not count as none."""

    def tried(*arguments: str, **environment: str) -> tuple[int, str, str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "FLAGS")}
        ran = subprocess.run(
            ["make", "--dry-run", *arguments],
            cwd=ROOT,
            env={**clean, "NAME": "DESKTOP-1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.returncode, ran.stdout, ran.stderr

    status, told, _ = tried("repo")
    assert status == 0
    assert "--name" not in told
    assert '--name "a"' in tried("repo", "NAME=a")[1]
    status, _, told = tried("repo", CHECKPOINT="my.pt")
    assert status
    assert 'CHECKPOINT is set in the environment, to "my.pt": write CHECKPOINT=... after make if you mean it' in told
    assert '--checkpoint "its.pt"' in tried("repo", "CHECKPOINT=its.pt", CHECKPOINT="my.pt")[1]
    assert tried("repo", "CHECKPOINT=", CHECKPOINT="my.pt")[0] == 0
    assert tried("demo", CHECKPOINT="my.pt")[0] == 0


def test_an_environment_of_another_python_is_told(tmp_path: Path) -> None:
    """PYTHON= was taken for none where .venv was there, and after a change of pyproject.toml mixed both into one folder."""
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.9.18\n")

    def tried(*arguments: str) -> tuple[int, str]:
        command = ["make", "--dry-run", *arguments, f"PYTHON={sys.executable}"]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stderr

    status, told = tried("demo", f"VENV={venv}")
    assert status
    assert (
        f"{venv} has Python 3.9, and not PYTHON={sys.executable}: add VENV=build/another, a folder of its own" in told
    )
    assert tried("demo", f"VENV={tmp_path / 'another'}") == (0, "")
    assert tried("help", f"VENV={venv}") == (0, "")
    (venv / "pyvenv.cfg").write_text(f"version = {sys.version.split()[0]}\n")
    assert tried("demo", f"VENV={venv}") == (0, "")
