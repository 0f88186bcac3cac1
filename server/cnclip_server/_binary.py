"""Finds the tritonserver to run."""

from __future__ import annotations

import importlib.util
import mmap
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cnclip_server._errors import BinaryNotFound

ENVIRONMENT_VARIABLE = "TRITONSERVER"


@dataclass(frozen=True)
class Binary:
    """A tritonserver and what lies beside it.

    Attributes:
        path: The executable, with symbolic links resolved: its backends are looked for beside the real file.
    """

    path: Path

    @property
    def home(self) -> Path:
        """The folder that holds `bin/` and `backends/`, such as /opt/tritonserver."""
        return self.path.parent.parent

    @property
    def has_onnxruntime(self) -> bool:
        """Whether Triton's own C++ onnxruntime backend is installed, so that no stand-in is needed."""
        return (self.home / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").is_file()

    def knows_flag(self, flag: str) -> bool:
        """Whether this version of tritonserver has a flag, such as `--metrics-address`.

        The name is looked for in the executable itself: `tritonserver --help` takes a full second.
        """
        with self.path.open("rb") as file:
            if self.path.stat().st_size == 0:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(flag.lstrip("-").encode() + b"\0") >= 0


def find_binary(explicit: Path | None = None) -> Binary:
    """Finds tritonserver: the path given, `TRITONSERVER`, `PATH`, then the nvidia-pytriton wheel.

    Args:
        explicit: The executable to take, whatever else is installed.

    Raises:
        BinaryNotFound: A path that was named is no executable file, or none was named and none is installed.
    """
    if explicit is not None:
        return _named(explicit, f"{explicit} is not an executable file")
    if variable := os.environ.get(ENVIRONMENT_VARIABLE):
        return _named(Path(variable), f"{ENVIRONMENT_VARIABLE}={variable} is not an executable file")
    if on_path := shutil.which("tritonserver"):
        return Binary(Path(on_path).resolve())
    if (in_wheel := _wheel_binary()) is not None and os.access(in_wheel, os.X_OK):
        return Binary(in_wheel.resolve())
    raise BinaryNotFound(f"neither {ENVIRONMENT_VARIABLE} nor PATH nor the package nvidia-pytriton has one")


def _named(path: Path, otherwise: str) -> Binary:
    """The executable at a path that somebody named: no other is taken in its place."""
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise BinaryNotFound(otherwise)
    return Binary(path.resolve())


def _wheel_binary() -> Path | None:
    """The binary in nvidia-pytriton, which is not imported: its own dependencies may not be installed."""
    spec = importlib.util.find_spec("pytriton")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "tritonserver" / "bin" / "tritonserver"
        if path.is_file():
            return path
    return None
