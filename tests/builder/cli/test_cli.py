"""`cnclip-build` as users meet it: help, errors in one line, and the Makefile's variables."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch
from cnclip_builder.cli.app import app
from typer.testing import CliRunner

from tests.commands import run_command_text
from tests.conftest import ASCII, DEMO, ROOT, starts_in_ascii

ARCH, CHECKPOINT, IMAGES = (str(DEMO / name) for name in ("demo.json", "clip_cn_demo.pt", "images"))


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command; with an environment, which may be one for Python to start in, in a Python of its own."""
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    if not environment:
        return run_command_text("cnclip-build", *arguments, cwd=cwd, env=env)
    command = [sys.executable, "-c", "from cnclip_builder.cli.app import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, cwd=cwd, env={**env, **environment}, encoding="utf-8", timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["repository", "--arch", "ViT-X"], "no architecture is named 'ViT-X': choose one of RN50"),
        (["repository", "--arch", "RN50", "--checkpoint", "absent.pt"], "no checkpoint at absent.pt"),
        (["repository", "--arch", "RN50", "--context-length", "600"], "context length 600 is out of range for RN50"),
        (["repository", "--arch", "RN50", "--max-batch-size", "0"], "max_batch_size is 0: choose at least 1"),
        (["repository", "--arch", "RN50", "--checkpoint", "random:0", "--name", "../x"], "can't name a model"),
        (["repository", "--arch", "RN50", "--model-version", "0"], "version 0 is out of range"),
        (["repository", "--arch", "RN50", "--platform", "tensorrt"], "Use PLATFORM=onnxruntime"),
        (["repository", "--arch", "RN50", "--repository", "/proc/x/y"], "/proc/x can't be written to"),
        (["onnx", "--arch", "RN50", "--artefacts", "/proc/x"], "can't be written to"),
        (["tensorrt", "--arch", "RN50"], "no TensorRT plan can be built"),
        *(
            ([command, "--arch", "RN50", "--vocabulary", "/dev/null"], "/dev/null lacks [UNK], [CLS], [SEP]")
            for command in ("checkpoint", "onnx", "tensorrt", "repository", "verify")
        ),
        # The server is asked before an official checkpoint is fetched, or large random weights are made.
        (["verify", "--arch", "RN50", "--url", "localhost:1"], "no Triton server answers at localhost:1"),
        (["verify", "--arch", "RN50", "--url", "localhost"], "'localhost' has no port"),
        (["verify", "--arch", "RN50", "--url", "http://localhost:8000"], "leave out the http://"),
        (["tensorrt", "--arch", "RN50", "--image-profile", "batch=4:2:1"], "4:2:1 is no range: choose 1 <= min"),
        (
            ["repository", "--arch", "RN50", "--plans", ".", "--image-profile", "batch=1:2:3", "--target", "gpu"],
            "--plans, --image-profile: for TensorRT plans alone, and onnxruntime serves none: choose --platform tensorrt",
        ),
        (["repository", "--arch", "RN50", "--fast"], "--fast: for TensorRT plans alone"),
        (["repository", "--arch", "RN50", "--card-images", "."], "--card-images: for a GPU that decodes"),
        (["tensorrt", "--arch", "RN50", "--workspace-mib", "0"], "the workspace limit is 0 MiB: choose at least 1"),
        (
            ["repository", "--arch", "RN50", "--target", "cpu", "--accelerator", "cuda"],
            "choose TARGET=gpu and PLATFORM",
        ),
        (
            ["repository", "--arch", "RN50", "--target", "cpu", "--platform", "tensorrt", "--plans", "."],
            "run on GPUs alone",
        ),
        (
            ["repository", "--arch", "RN50", "--target", "gpu", "--cuda-graphs"],
            "CUDA graphs are the tensorrt backend's",
        ),
        (["repository", "--arch", "RN50", "--json"], "--json is what a dry run says: add --dry-run"),
        (
            ["repository", "--checkpoint", "hf:someone/model", "--dry-run"],
            "hf:someone/model is not here to tell its architecture, and a dry run fetches nothing: name its ARCH",
        ),
        (["checkpoint", "--arch", "RN50"], "could not fetch clip_cn_rn50.pt"),
        (["compare-features", "random:0", "random:1"], "there is nothing to compare on: give --images"),
        (
            ["compare-features", CHECKPOINT, "absent.pt", "--arch", ARCH, "--arch-b", "RN50", "--images", IMAGES],
            "no checkpoint at absent.pt",
        ),
        (
            ["compare-features", "absent.pt", "random:1", "--images", IMAGES, "--html", "/proc/x/page"],
            "/proc/x can't be written to",
        ),
        (["compare-features", "a:fp16", "b:fp16", "--images", "absent"], "absent"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "build" / "repository").exists()


def test_an_interrupted_command_says_what_has_become_of_its_work() -> None:
    code = (
        "import cnclip_builder.cli.options as options\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "options.choose_arch = interrupted\n"
        "from cnclip_builder.cli.app import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code, "checkpoint"], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (130, "interrupted; what was there before is untouched\n")


@starts_in_ascii
@pytest.mark.parametrize("command", [["checkpoint", "--help"], ["archs"]])
def test_a_charset_that_lacks_a_character_ends_nothing(command: list[str]) -> None:
    result = run(*command, **ASCII)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip()
    result = run(*command, **ASCII, PYTHONIOENCODING="ascii:backslashreplace")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()


@starts_in_ascii
def test_chinese_names_are_found_whatever_the_locale(tmp_path: Path, tiny_vit: Arch) -> None:
    torch.save({"state_dict": CLIP(**tiny_vit.model_info).state_dict()}, tmp_path / "检查点.pt")
    (tmp_path / "模型").mkdir()
    shutil.copy(tiny_vit.option, tmp_path / "模型" / "tiny.json")
    options = ["--arch", "模型/tiny.json", "--checkpoint", "检查点.pt"]
    made = ["--artefacts", "模型/产物", "--tower", "text", "--precision", "fp32"]
    result = run("onnx", *options, *made, cwd=tmp_path, **ASCII)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("模型/产物/tiny/tiny.txt.fp32.onnx  fp32")
    assert (tmp_path / "模型" / "产物" / "tiny" / "tiny.txt.fp32.onnx").is_file()
    result = run("checkpoint", "--arch", "模型/tiny.json", "--checkpoint", "没有.pt", cwd=tmp_path, **ASCII)
    assert result.stderr.startswith("error: no checkpoint at 没有.pt: ")


def test_verbose_shows_the_traceback() -> None:
    assert "Traceback" in run("onnx", "--arch", "none", "-v").stderr


def recipe(target: str, *variables: str) -> str:
    """What make would run."""
    command = ["make", "--dry-run", "--always-make", target, *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_passes_each_variable_on() -> None:
    flags = {
        "ARCH=ViT-H-14": '--arch "ViT-H-14"',
        "CHECKPOINT=a b.pt": '--checkpoint "a b.pt"',
        "VOCABULARY=v.txt": '--vocabulary "v.txt"',
        "PRECISION=fp16": '--precision "fp16"',
        "TARGET=gpu": '--target "gpu"',
        "PLATFORM=tensorrt": '--platform "tensorrt"',
        "ACCELERATOR=cuda": '--accelerator "cuda"',
        "PREPROCESS=gpu": '--preprocess "gpu"',
        "PLANS=p q": '--plans "p q"',
        "TENSORRT=10.13.3": "pip install --progress-bar on 'tensorrt==10.13.3.*'",
        "CONTEXT_LENGTH=77": '--context-length "77"',
        "MAX_BATCH_SIZE=8": '--max-batch-size "8"',
        "REPOSITORY=r": '--repository "r"',
        "NAME=n": '--name "n"',
        "MODEL_VERSION=2": '--model-version "2"',
        "ENCODERS_ONLY=1": "--encoders-only",
        "DOWNLOAD_ROOT=d": '--download-root "d"',
        "HUB=modelscope": '--hub "modelscope"',
        "VERIFY=1": "--verify",
        "DRY_RUN=1": "--dry-run",
        "FLAGS=--fast": "--fast",
    }
    without, with_all = recipe("repo"), recipe("repo", *flags)
    assert [flag for flag in flags.values() if flag in without or flag not in with_all] == []
    assert "what tests and benchmarks need" not in with_all


def test_make_refuses_a_variable_that_it_does_not_know() -> None:
    """Else `make repo CHECKPONT=my.pt` would build the official checkpoint."""
    given = ["make", "--dry-run", "repo", "VERIFY=1", "FLAGS=--a b=c --d=e"]
    done = subprocess.run([*given, "CHECKPONT=my.pt"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"Makefile:\d+: \*\*\* there is no variable CHECKPONT; `make help` lists them\.  Stop\.\n", done.stderr
    )
    subprocess.run(given, cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("target", ["repo", "verify", "gpu-report"])
def test_make_passes_no_arch_that_was_not_given(target: str) -> None:
    assert "--arch" not in recipe(target, "CHECKPOINT=a.pt")
    assert '--arch "ViT-L-14"' in recipe(target, "CHECKPOINT=a.pt", "ARCH=ViT-L-14")


def test_the_arch_is_read_off_the_checkpoint_by_every_command(
    tmp_path: Path, tiny_vit: Arch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they ask for is the same, and a file that says it is taken by all; see test_detect for what is read."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": CLIP(**tiny_vit.model_info).state_dict()}, tmp_path / "odd.pt")
    (tmp_path / "heads.json").write_text('{"text_num_attention_heads": 2, "vision_head_width": 64}')
    invoke = CliRunner().invoke
    options = ["--checkpoint", "odd.pt"]
    result = invoke(app, ["checkpoint", *options])
    assert "odd.pt does not tell its text_num_attention_heads and vision_head_width" in str(result.exception)
    for command, complaint in (
        (["checkpoint"], None),
        (["repository", "--context-length", "200"], "context length 200 is out of range for odd"),
        (["tensorrt", "--context-length", "200"], "context length 200 is out of range for odd"),
        (["onnx", "--name", "no/name"], "'no/name' can't name a model"),
        (["verify", "--url", "localhost:1"], "localhost:1"),
    ):
        result = invoke(app, [*command, *options, "--arch", "heads.json"])
        if complaint is None:
            assert "arch          odd\n" in result.stdout
        else:
            assert complaint in str(result.exception)


def test_the_builder_is_light_until_it_builds() -> None:
    code = (
        "import sys, cnclip_builder.cli.app, cnclip_builder.build\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'cn_clip') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_compare_features_as_a_user_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table keeps within 80 columns; JSON and a page on demand."""
    monkeypatch.chdir(DEMO)
    invoke = CliRunner().invoke
    sides = ["clip_cn_demo.pt", "random:0", "--arch", "demo.json"]
    data = ["--pairs", "captions.tsv", "--download-root", str(tmp_path)]
    page = ["--html", str(tmp_path / "page.html"), "--worst", "6"]
    shown = invoke(app, ["compare-features", *sides, *data, *page])
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for word in ("text-to-image", "R@10", "centred", "three-red-circles-top-left-on-white.png", "100.0%"):
        assert word in shown.stdout
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    told = json.loads(invoke(app, ["compare-features", *sides, *data, "--json", "--worst", "1"]).stdout)
    assert told["retrieval"]["text-to-image"]["recall"]["a"]["r1"] == 1
    assert len(told["images"]["distances"]["worst"]) == 1


def test_a_dry_run_as_a_user_meets_it(tmp_path: Path, demo_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 80 columns, with what changes of configs that are there; JSON has them whole; no file is written."""
    artefacts, repository = demo_repository.parent / "artefacts", tmp_path / "repository"
    shutil.copytree(demo_repository, repository)
    for name in ("demo.json", "clip_cn_demo.pt"):
        (tmp_path / name).symlink_to(DEMO / name)
    files = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)

    def told(*more: str) -> str:
        demo = ["--arch", "demo.json", "--checkpoint", "clip_cn_demo.pt", "--target", "cpu"]
        result = CliRunner().invoke(app, ["repository", *demo, "--artefacts", str(artefacts), "--dry-run", *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    new = told("--repository", "new")
    assert max(map(len, new.splitlines())) <= 80
    assert "\n  reused  demo.img.fp32.onnx\n" in new
    assert "\n  made  demo-image-encoder\n" in new
    assert '\n# demo-text/config.pbtxt: made\nname: "demo-text"\n' in new
    changed = told("--repository", "repository", "--encoder-instances", "image=2")
    assert max(map(len, changed.splitlines())) <= 80
    assert "# demo-text/config.pbtxt: unchanged\n" in changed
    assert "-instance_group [ { count: 1 kind: KIND_CPU } ]\n+instance_group [ { count: 2 " in changed
    found = json.loads(told("--repository", "repository", "--json"))
    config = found["configs"]["demo-image-encoder"]
    assert config == {
        "action": "unchanged",
        "text": (repository / "demo-image-encoder" / "config.pbtxt").read_text(encoding="utf-8"),
    }
    assert found["models"]["demo-image-encoder"] == "reused"
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(
    "arguments",
    [
        ["--arch", "RN50", "--checkpoint", "absent.pt"],
        ["--arch", "RN50", "--target", "cpu", "--accelerator", "cuda"],
        ["--arch", "RN50", "--repository", "/proc/x/y"],
    ],
)
def test_a_dry_run_is_refused_as_the_build_is(tmp_path: Path, arguments: list[str]) -> None:
    """See test_preview for what else a build refuses."""
    dry, real = (run("repository", *arguments, *more, cwd=tmp_path) for more in (["--dry-run"], []))
    assert (dry.returncode, dry.stdout) == (1, "")
    assert (dry.returncode, dry.stderr.splitlines()[-1]) == (real.returncode, real.stderr.splitlines()[-1])
