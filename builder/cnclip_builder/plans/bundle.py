"""A folder to carry to a GPU machine: ONNX files, and one script that makes plans of them there.

The script is this package's own code, so plans made there are proved and described as plans made here are. What it
needs of that machine is Python 3.8 or later with TensorRT and numpy, which NVIDIA's containers have; Polygraphy is
pure Python and goes along.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import zipfile
from collections.abc import Iterator
from pathlib import Path

from cnclip_builder.errors import MissingRequirementError, SettingError
from cnclip_builder.plans.record import PlanJob, write_jobs
from cnclip_builder.system.atomic import replacing_folder

SCRIPT_NAME = "build_plans.pyz"

MODULES = (
    "__init__",
    "errors",
    "parity/__init__",
    "parity/distance",
    "plans/__init__",
    "plans/api",
    "plans/check",
    "plans/cuda_runtime",
    "plans/device",
    "plans/make",
    "plans/profiles",
    "plans/progress",
    "plans/record",
    "plans/requirements",
    "plans/script",
    "system/__init__",
    "system/atomic",
    "tensors",
)
"""The modules of this package that go along; they import nothing else of it."""

_MAIN = """\
import sys

try:
    import numpy
except ImportError:
    sys.exit("error: numpy is missing: pip install numpy, or work in NVIDIA's container tensorrt:YY.MM-py3")

from cnclip_builder.plans.script import main

main()
"""

_README = """\
Plans for Triton's tensorrt backend are made from this folder, on a machine with the kind of GPU that will serve them
and with the TensorRT of the tritonserver that will:

    python3 {script}                 (python3 {script} --help has the options)

It needs Python 3.8 or later with TensorRT and numpy, as NVIDIA's container tensorrt:YY.MM-py3 has them. Then, where
this folder was written, with the plans (*.trt) and their sidecars (*.trt.json) copied back into it:

    cnclip-build repository ... --platform tensorrt --target gpu --plans THIS_FOLDER
"""


@contextlib.contextmanager
def new_bundle(target: Path) -> Iterator[Path]:
    """Gives a folder for the sources of plans; on a clean exit it takes the target's place in one step.

    Raises:
        SettingError: the target holds something already.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingError(f"{target} holds something already, perhaps plans: choose another folder, or empty it")
    with replacing_folder(target) as folder:
        yield folder


def finish_bundle(folder: Path, jobs: tuple[PlanJob, ...]) -> None:
    """Adds the list of jobs, the script and a README to a folder that holds the sources of plans.

    Raises:
        MissingRequirementError: Polygraphy is not installed here.
    """
    write_jobs(folder, jobs)
    with zipfile.ZipFile(folder / SCRIPT_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        package = importlib.resources.files("cnclip_builder")
        for module in MODULES:
            archive.writestr(f"cnclip_builder/{module}.py", (package / f"{module}.py").read_bytes())
        for name, content in _polygraphy():
            archive.writestr(name, content)
        archive.writestr("__main__.py", _MAIN)
    (folder / "README.txt").write_text(_README.format(script=SCRIPT_NAME), encoding="utf-8")


def _polygraphy() -> Iterator[tuple[str, bytes]]:
    """The library's modules, but for its command line, and its metadata; each file names its licence, Apache-2.0."""
    try:
        files = importlib.metadata.files("polygraphy") or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingRequirementError("polygraphy is not installed: pip install 'cn-clip-triton[tensorrt]'") from None
    for file in files:
        code = file.suffix == ".py" and file.parts[:2] != ("polygraphy", "tools") and file.parts[0] == "polygraphy"
        if code or file.name == "METADATA":
            yield file.as_posix(), file.read_binary()
