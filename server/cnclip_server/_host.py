"""What the embedded tritonserver needs of this machine: a C library, a libpython, an environment."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import re
import resource
import sys
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from cnclip_server._binary import Binary
from cnclip_server._errors import UnsupportedHost

_CONTAINER = "or serve the repository with NVIDIA's container"
_MINIMUM_GLIBC = (2, 35)
# tritonserver had 66 files open with one model and no client, 68 with the six of a checkpoint; each client is one more.
_FEWEST_OPEN_FILES = 256
_NUMPY_1 = re.compile(r"numpy\b[^;]*<\s*2")

# glibc hands the memory of every message of several MB back to the kernel and faults it in again for the next
# one. Keeping up to 256 MiB, and mapping nothing below 32 MiB (the most that glibc takes) on its own, made
# single FP32 images arrive 1.7 times as fast.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


# From 1.32 on, PyPI's onnxruntime reports its use to Microsoft on Linux too, unless told not to before it is loaded.
_NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}

# Without it a stub in the C locale cannot print Chinese, nor name a file in it: it would take everything for ASCII.
_UTF8 = {"PYTHONUTF8": "1"}


def python_version() -> str:
    """The running interpreter's version as Triton names its stubs, such as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def check_glibc() -> None:
    """Refuses a C library that the wheel's tritonserver cannot be loaded with.

    Raises:
        UnsupportedHost: There is no glibc here (musl, macOS), or one older than 2.35.
    """
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        name, version = "", ""
    needed = ".".join(map(str, _MINIMUM_GLIBC))
    if name != "glibc":
        raise UnsupportedHost(
            f"the embedded tritonserver needs Linux with glibc {needed} or newer; use one, {_CONTAINER}"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < _MINIMUM_GLIBC:
        raise UnsupportedHost(
            f"the embedded tritonserver needs glibc {needed}, this machine has {version}; use a newer "
            f"system, such as Ubuntu 22.04 or Debian 12, {_CONTAINER}"
        )


def check_numpy() -> None:
    """Refuses a numpy that the wheel's Python stubs cannot exchange tensors with.

    The stubs of nvidia-pytriton 0.7 read numpy 1's structures: with numpy 2 every tensor seems to have elements of
    0 bytes, so that answers come back empty and strings crash the stub. Another release of the wheel may do better:
    what counts is whether it asks for `numpy<2` itself.

    Raises:
        UnsupportedHost: numpy 2 is installed and the wheel asks for less.
    """
    try:
        version = metadata.version("numpy")
        wanted = [text for text in metadata.requires("nvidia-pytriton") or [] if _NUMPY_1.match(text)]
    except metadata.PackageNotFoundError:
        return  # A binary that is no installed wheel, or an environment whose models will miss numpy by themselves.
    if wanted and int(version.partition(".")[0]) >= 2:
        raise UnsupportedHost(
            f"the embedded tritonserver's Python backend needs numpy 1, and numpy {version} is installed; run "
            f"`pip install 'numpy<2'` (with --no-deps on Python 3.13), {_CONTAINER}"
        )


def check_open_files() -> None:
    """Refuses to run where too few files may be open at a time; `_guard.py` raises the limit to what is allowed.

    Without it Triton fails in odd ways: its services cannot listen, and say that their ports are in use.

    Raises:
        UnsupportedHost: The limit is below what tritonserver opens for a repository of a few models.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _FEWEST_OPEN_FILES:
        raise UnsupportedHost(
            f"no more than {most} files may be open here at a time, and tritonserver needs {_FEWEST_OPEN_FILES} or "
            "more, one for each client beside; raise the limit, as by `ulimit -n 65536`"
        )


def has_all_its_threads() -> bool:
    """Whether as many threads of this user run as it may have (`ulimit -u`), which root always may have more of."""
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    return os.getuid() != 0 and most != resource.RLIM_INFINITY and _threads_of(os.getuid()) >= most


def _threads_of(user: int) -> int:
    """How many threads a user's processes have, as far as they are seen from here."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):  # a process that has just ended
            status = folder.stat()
            count += status.st_nlink - 2 if status.st_uid == user else 0
    return count


def wheel_libraries(binary: Binary) -> Path | None:
    """The shared libraries that the nvidia-pytriton wheel lays beside its package; None for other builds."""
    folder = binary.home.parent.parent / "nvidia_pytriton.libs"
    return folder if folder.is_dir() else None


def libpython_folder(libraries: Path | None) -> Path | None:
    """Finds the folder of the libpython that the Python backend's stub is linked with.

    Args:
        libraries: The wheel's own libraries, where the stub's libpython may be bundled (3.13's is).

    Returns:
        The folder to put on LD_LIBRARY_PATH; None where the loader finds it without: bundled or system-wide.

    Raises:
        UnsupportedHost: No shared libpython of this version can be found.
    """
    version = python_version()
    if libraries is not None and any(libraries.glob(f"libpython*.{sys.version_info.minor}.so*")):
        return None
    name = f"libpython{version}.so.1.0"
    # LIBDIR is where Python was built to live; relocatable builds (uv's, conda's) are elsewhere, beside
    # base_prefix.
    folders = [Path(sysconfig.get_config_var("LIBDIR") or sys.base_prefix), Path(sys.base_prefix) / "lib"]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    if ctypes.util.find_library(f"python{version}") is not None:
        return None
    raise UnsupportedHost(
        f"{name} was not found: this Python {version} ({sys.base_prefix}) was built without a shared "
        "library, which Triton's Python backend needs. Install it (Debian, Ubuntu: apt install "
        f"libpython{version}), or build Python with --enable-shared, {_CONTAINER}"
    )


def environment(binary: Binary) -> dict[str, str]:
    """The environment in which the embedded tritonserver's Python stubs find our packages; what is set there wins.

    Raises:
        UnsupportedHost: No shared libpython of this version can be found.
    """
    libraries = wheel_libraries(binary)
    # The stub embeds Python, which looks for its home by way of the first `python3` on PATH: ours, so that it
    # lands in our virtual environment. PYTHONPATH covers environments that carry no `python3`.
    return {
        **_MALLOC,
        **_NO_TELEMETRY,
        **_UTF8,
        **os.environ,
        "PATH": _joined([Path(sys.executable).parent], os.environ.get("PATH")),
        "LD_LIBRARY_PATH": _joined([libpython_folder(libraries), libraries], os.environ.get("LD_LIBRARY_PATH")),
        "PYTHONPATH": _joined(
            dict.fromkeys(Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")),
            os.environ.get("PYTHONPATH"),
        ),
    }


def _joined(first: Iterable[Path | None], rest: str | None) -> str:
    """A search path: our folders, then what was there. Empty parts would mean the working directory."""
    parts = [str(folder) for folder in first if folder is not None]
    return os.pathsep.join([*parts, *(part for part in (rest or "").split(os.pathsep) if part)])
