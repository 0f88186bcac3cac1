"""Compiles `cnclip_resize._native` into the wheel where there is a C compiler for it; without one the wheel is pure.

`CNCLIP_NATIVE=require` fails instead, for those who build wheels for others, and `CNCLIP_NATIVE=skip` does not try.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

_NAME = "cnclip_resize/_native.abi3.so"
_SOURCES = ("jpeg.c", "module.c", "resize.c")
# No fused multiplications: Pillow's weights have none.
_FLAGS = ("-O3", "-std=c11", "-Wall", "-Wextra", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden")
# One module for Python 3.10 and all later ones.
_STABLE = ("-DPy_LIMITED_API=0x030A0000",)
_PROCESSORS = ("x86_64", "AMD64")


class Cannot(Exception):
    """It can't be compiled here; the message says why."""


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook of the target `wheel`, editable ones among them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, and has the result put into the wheel.

        Args:
            version: "editable", where the module is left in the source tree, or "standard".
            build_data: of hatchling; gets the module, and the tag of a wheel that is not pure.
        """
        wanted = os.environ.get("CNCLIP_NATIVE", "")
        if wanted == "skip":
            return
        root = Path(self.root)
        editable = version == "editable"
        target = root / "resize" / _NAME if editable else Path(self.directory) / ".native" / Path(_NAME).name
        try:
            compile_module(root / "resize/src", target)
        except Cannot as reason:
            if wanted == "require":
                raise
            self.app.display_warning(f"cnclip_resize is installed without its compiled module: {reason}")
            return
        if not editable:
            build_data["pure_python"] = False
            build_data["tag"] = f"cp310-abi3-{next(sys_tags()).platform}"
            build_data["force_include"][str(target)] = _NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was compiled for the wheel."""
        shutil.rmtree(Path(self.directory) / ".native", ignore_errors=True)


def compile_module(sources: Path, target: Path) -> None:
    """Compiles the module.

    Args:
        sources: the folder of the C files.
        target: the module's file; folders above it are made.

    Raises:
        Cannot: there is no compiler, no header of Python, or another processor.
    """
    if sys.platform != "linux" or platform.machine() not in _PROCESSORS or sys.maxsize < 2**32:
        raise Cannot(f"it is for Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
    named = os.environ.get("CC", "").strip() or "cc"
    try:
        compiler = shlex.split(named)
    except ValueError as error:
        raise Cannot(f"CC is {named!r}, no command ({error}): name a compiler in it, or unset it") from error
    if not shutil.which(compiler[0]):
        raise Cannot(f"there is no C compiler {compiler[0]}: install one, or name it in CC")
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        raise Cannot(f"there is no {include}/Python.h: install Python's headers")
    target.parent.mkdir(parents=True, exist_ok=True)
    files = [str(sources / name) for name in _SOURCES]
    partial = target.with_suffix(".partial")  # Whoever has the old one loaded goes on with it.
    command = [*compiler, *_FLAGS, *_STABLE, "-shared", f"-I{include}", *files, "-lm", "-ldl", "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Cannot(f"{shlex.join(command)} failed:\n{done.stderr}")
    partial.replace(target)
