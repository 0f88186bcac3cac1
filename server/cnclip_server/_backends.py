"""Puts together the backend directory of a tritonserver that has no onnxruntime backend of its own."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import cnclip_machine

from cnclip_server._binary import Binary
from cnclip_server._errors import UnsupportedHost
from cnclip_server._host import python_version

STAND_IN = Path(__file__).parent / "backends" / "onnxruntime"

_LIBRARY = "libtriton_python.so"
_STUB = "triton_python_backend_stub"
_UTILITIES = "triton_python_backend_utils.py"


def check_backends(binary: Binary) -> None:
    """Sees that there is what `assemble_backends` takes.

    Raises:
        UnsupportedHost: The binary has no Python backend, or none for this version of Python; or ONNX Runtime, with
            which the stand-in runs models, is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UnsupportedHost(
            f"{binary.path} has no onnxruntime backend of its own, and the stand-in for it needs ONNX Runtime: "
            "pip install 'cn-clip-triton[server,cpu]', or [server,gpu] for a GPU"
        )
    if not (binary.home / "backends" / "python" / _LIBRARY).is_file():
        raise UnsupportedHost(
            f"{binary.path} has neither an onnxruntime backend nor a python backend beside it; use the one "
            "of `pip install --no-deps nvidia-pytriton`, or NVIDIA's container"
        )
    _stub(binary)


def assemble_backends(binary: Binary, target: Path) -> None:
    """Fills a folder with the binary's own backends, a python backend for this interpreter, and the stand-in.

    Args:
        binary: The tritonserver to serve with.
        target: An empty folder, to be given as `--backend-directory`.

    Raises:
        UnsupportedHost: As `check_backends`.
    """
    check_backends(binary)
    theirs = binary.home / "backends"
    for backend in theirs.iterdir():
        if backend.name not in ("python", "onnxruntime"):
            (target / backend.name).symlink_to(backend, target_is_directory=True)
    python = target / "python"
    python.mkdir()
    # Copied, not linked: for a Python-based backend Triton insists that this library, links resolved, lies
    # inside the backend directory. The copy no longer finds its neighbours by itself, hence LD_LIBRARY_PATH
    # in _host.environment.
    shutil.copyfile(theirs / "python" / _LIBRARY, python / _LIBRARY)
    (python / _UTILITIES).symlink_to(theirs / "python" / _UTILITIES)
    # Linked, not copied: the stub does find its neighbours, from where the link leads.
    (python / _STUB).symlink_to(_stub(binary))
    onnxruntime = target / "onnxruntime"
    onnxruntime.mkdir()
    # Copied: behind a link, its modules would be looked for where that leads. Not its modes, which may be read-only.
    for source in STAND_IN.glob("*.py"):
        shutil.copyfile(source, onnxruntime / source.name)
    shutil.copyfile(cnclip_machine.__file__, onnxruntime / "cnclip_machine.py")


def _stub(binary: Binary) -> Path:
    """The stub for the running interpreter's version: the wheel has several, other builds have one.

    Raises:
        UnsupportedHost: There is none for this version.
    """
    stubs = binary.home / "python_backend_stubs"
    if not stubs.is_dir():
        return binary.home / "backends" / "python" / _STUB
    stub = stubs / python_version() / _STUB
    if not stub.is_file():
        versions = sorted(
            (folder.name for folder in stubs.iterdir()), key=lambda name: [int(n) for n in name.split(".")]
        )
        raise UnsupportedHost(
            f"the embedded tritonserver has no Python backend for Python {python_version()}, only for "
            f"{', '.join(versions)}; run with one of these, or serve the repository with NVIDIA's container"
        )
    return stub
