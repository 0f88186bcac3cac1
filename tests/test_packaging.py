"""What is installed: the wheel's contents, and the client alone in a bare environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import MAINS
from tests.conftest import ROOT

PACKAGES = (
    "builder/cnclip_builder",
    "model_repository_templates/cnclip_templates",
    "server/cnclip_server",
    "client/cnclip_client",
    "benchmarks/cnclip_bench",
    "resize/cnclip_machine",
    "resize/cnclip_pixels",
    "resize/cnclip_resize",
    "resize/cnclip_card",
    "tokens/cnclip_token_ids",
    "console/cnclip_console",
    "gateway/cnclip_gateway",
)

# What is no Python module has to be named: a forgotten template is found by users only.
DATA = {
    "cnclip_builder/comparison/page.html.j2",
    "cnclip_builder/comparison/words.json",
    "cnclip_builder/parity/data/LICENSES.md",
    "cnclip_builder/parity/data/captions.txt",
    "cnclip_bench/py.typed",
    "cnclip_builder/py.typed",
    "cnclip_client/py.typed",
    "cnclip_console/py.typed",
    "cnclip_client/report/report.html.j2",
    "cnclip_client/report/words.json",
    "cnclip_card/py.typed",
    "cnclip_card/resize.cu",
    "cnclip_gateway/pages/docs.css",
    "cnclip_gateway/pages/docs.html",
    "cnclip_gateway/pages/openapi.json",
    "cnclip_gateway/pages/search.css",
    "cnclip_gateway/pages/search.html",
    "cnclip_gateway/pages/search.js",
    "cnclip_gateway/pages/words.json",
    "cnclip_gateway/py.typed",
    "cnclip_resize/_native.pyi",
    "cnclip_machine/py.typed",
    "cnclip_pixels/py.typed",
    "cnclip_resize/py.typed",
    "cnclip_server/py.typed",
    "cnclip_templates/_encoder.j2",
    "cnclip_templates/_ensemble.j2",
    "cnclip_templates/_macros.j2",
    "cnclip_templates/image-encoder/config.pbtxt.j2",
    "cnclip_templates/image-preprocess/config.pbtxt.j2",
    "cnclip_templates/image/config.pbtxt.j2",
    "cnclip_templates/py.typed",
    "cnclip_templates/text-encoder/config.pbtxt.j2",
    "cnclip_templates/text-tokenize/config.pbtxt.j2",
    "cnclip_templates/text/config.pbtxt.j2",
    "cnclip_templates/warmup.jpg",
    "cnclip_token_ids/py.typed",
    "cnclip_token_ids/vocab.txt",
}

# What the base install must never bring or need.
HEAVY = ("torch", "onnx", "onnxruntime", "cn_clip", "tokenizers", "PIL", "jinja2", "pyarrow", "lmdb", "faiss")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def install(folder: Path, *what: str | Path) -> None:
    """Makes a virtual environment, by this one's pip: one of its own would take longer than all that is installed."""
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", *what], check=True, capture_output=True)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and what it needs, no extras."""
    folder = tmp_path_factory.mktemp("bare")
    install(folder, wheel)
    return folder / "bin"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


# All but [gpu], which brings the same folder as [cpu].
EXTRAS = (
    "cpu,builder,modelscope,tensorrt,publish,prepare,remote,parquet,search,index,report,gateway,ray,spark,bench,server"
)


@pytest.fixture(scope="module")
def full(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `bin` of an environment with the sdist, all extras, and the embedded server, as the README installs it."""
    folder = tmp_path_factory.mktemp("full")
    venv.create(folder, with_pip=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-compile"]
    pinned = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, *pinned, f"cn-clip-triton[{EXTRAS}] @ {sdist.as_uri()}"], check=True)
    subprocess.run([*install, "--no-deps", "nvidia-pytriton==0.7.0"], check=True)
    yield folder / "bin"
    shutil.rmtree(folder)  # gigabytes


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    modules = {
        f"{Path(package).name}/{path.relative_to(ROOT / package).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    compiled = {"cnclip_resize/_native.abi3.so"} if wheel.name.endswith("-cp310-abi3-linux_x86_64.whl") else set()
    assert compiled or wheel.name.endswith("-py3-none-any.whl")
    assert names == modules | DATA | compiled
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}


def test_every_module_of_the_client_imports_without_extras(bare: Path) -> None:
    code = (
        "import importlib, json, pkgutil, sys, cnclip_client\n"
        "names = [m.name for m in pkgutil.walk_packages(cnclip_client.__path__, 'cnclip_client.')]\n"
        "for name in names: importlib.import_module(name)\n"
        f"print(json.dumps([names, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    result = run(bare / "python", "-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr
    names, heavy = json.loads(result.stdout)
    assert "cnclip_client._client" in names
    assert heavy == []


# Every subcommand, found by asking the command itself, in a child each: nothing that one imports is there for another.
HELP = """
import gc, importlib, os, sys, typer.main
from contextlib import suppress
name, module = sys.argv[1:]
main, command = (getattr(importlib.import_module(module), part) for part in ("main", "app"))
def walk(command, path):
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, [*path, name])
with suppress(ImportError):
    import pydantic.type_adapter  # which typer imports as it parses
gc.freeze()
for path in walk(typer.main.get_command(command), []):
    sys.stdout.flush()
    if not (child := os.fork()):
        print("asked", *path)
        sys.argv[:] = [name, *path, "--help"]
        status = 1
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        sys.stdout.flush()
        os._exit(status)
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{name} {' '.join(path)} --help: status {status}")
"""


@pytest.mark.parametrize("command", MAINS)
def test_every_help_needs_no_extras(bare: Path, command: str) -> None:
    """And says what it is for."""
    result = run(bare / command, "--help")
    assert (result.returncode, "Usage" in result.stdout) == (0, True), result.stderr
    result = run(bare / "python", "-W", "error", "-c", HELP, command, MAINS[command])
    assert result.returncode == 0, result.stderr
    asked = re.findall("^asked", result.stdout, re.MULTILINE)
    assert len(asked) == len(re.findall("Usage: ", result.stdout)) >= 1


def test_a_build_without_the_extra_says_what_to_install(bare: Path) -> None:
    result = run(bare / "cnclip-build", "repository", "--arch", "RN50", "--checkpoint", "random:0")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "pip install 'cn-clip-triton[builder,cpu]', or [builder,gpu]" in result.stderr


def test_the_compiled_resize_runs_where_pillow_and_nothing_else_of_ours_is(wheel: Path, tmp_path: Path) -> None:
    """As in the server's image: installed without what it needs, beside the Python models' few libraries."""
    if not wheel.name.endswith("-cp310-abi3-linux_x86_64.whl"):
        pytest.skip("the wheel was built without a C compiler")
    python = tmp_path / "bin/python"
    install(tmp_path, "--no-deps", "pillow", wheel)
    code = (
        "from PIL import Image; from cnclip_resize import resize, resizer; print(resizer())\n"
        "image = Image.radial_gradient('L'); square = resize(image, 32)\n"
        "print(square is None or square == image.resize((32, 32), Image.Resampling.BICUBIC).convert('RGB').tobytes())"
    )
    result = run(python, "-I", "-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr
    said, equal = result.stdout.splitlines()
    assert "without its compiled module" not in said
    assert equal == "True"


def test_the_sdist_builds_without_a_compiler(sdist: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(sdist),
    ]
    environment = {"PATH": os.environ["PATH"], "CC": "/nowhere/cc"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert [path.name.split("-", 2)[2] for path in tmp_path.glob("*.whl")] == ["py3-none-any.whl"]


def test_no_extra_is_forgotten() -> None:
    named = re.findall(
        r"^(\w+) = \[",
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("[project.")[0],
        re.MULTILINE,
    )
    assert sorted([*EXTRAS.split(","), "gpu"]) == sorted(named)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(3600)
def test_the_sdist_with_all_extras_builds_a_repository_and_serves_it(full: Path, tmp_path: Path) -> None:
    """Far from the source tree: checkpoint to repository, served, and compared with PyTorch while it is."""
    demo = ROOT / "examples/demo"
    command = [
        full / "cnclip-build",
        "repository",
        "--arch",
        demo / "demo.json",
        "--checkpoint",
        demo / "clip_cn_demo.pt",
    ]
    environment = {"PATH": f"{full}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--verify"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "serves demo-image and demo-text" in done.stdout
    assert re.search(r"^of images +\d+ +\d\.\de-\d\d ", done.stdout, re.MULTILINE), done.stdout
    # And the client's commands, each with what its extra brings.
    _, *pairs = (demo / "captions.tsv").read_text(encoding="utf-8").splitlines()
    lines = [{"text_id": row, "text": one.split("\t")[1]} for row, one in enumerate(pairs)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    commands = [
        f"cnclip extract images {demo / 'images'} -o images.parquet --prepare client",
        "cnclip extract texts texts.jsonl -o texts.parquet",
        "cnclip index images images.parquet -o images.index",
        "cnclip search --image-feats images.parquet --text-feats texts.parquet -o exact.jsonl --top-k 1"
        f" --html found.html --images {demo / 'images'} --texts texts.jsonl",
        "cnclip search --index images.index --text-feats texts.parquet -o approximate.jsonl --top-k 1",
    ]
    code = (
        "import os, pathlib, subprocess; from cnclip_server import TritonServer\n"
        "with TritonServer(pathlib.Path('build/repository'), grpc_port=0, http_port=0, metrics_port=0) as server:\n"
        f"    for command in {commands!r}:\n"
        "        environment = {**os.environ, 'CNCLIP_URL': server.grpc_url, 'CNCLIP_MODEL': 'demo'}\n"
        "        subprocess.run(command.split(), env=environment, check=True)"
    )
    done = subprocess.run(
        [full / "python", "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("exact", "approximate"):
        found = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [one["image_ids"][0] for one in found] == [pair.split("\t")[0] for pair in pairs]
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count("data:image/") >= 6
    modules = "cnclip_gateway._app, cnclip_client.ray, cnclip_client.spark, cnclip_client.report, cnclip_bench.output, fsspec, s3fs, faiss, modelscope"
    done = subprocess.run(
        [full / "python", "-I", "-c", f"import {modules}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_clients_image_installs_what_its_dockerfile_says(wheel: Path, tmp_path: Path) -> None:
    """Its own line of pip, with its paths here: no container engine is needed for that."""
    text = (ROOT / "deploy/docker/client.Dockerfile").read_text().replace("\\\n", "")
    (line,) = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    venv.create(tmp_path / "venv", with_pip=True)
    (tmp_path / "opt").mkdir()
    for file in (wheel, ROOT / "constraints.txt"):
        shutil.copy(file, tmp_path / "opt")
    environment = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "EXTRAS": extras, "HOME": str(tmp_path)}
    script = line.replace("/opt/cnclip", f"{tmp_path}/opt")
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("cnclip ")
    code = "import cnclip_client.report, faiss, pyarrow, importlib.util as found; print(found.find_spec('torch'))"
    done = subprocess.run([tmp_path / "venv/bin/python", "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
