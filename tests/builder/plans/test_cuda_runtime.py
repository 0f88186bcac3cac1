"""CUDA's runtime library on hosts that have only the driver: found in pip's wheels, or told for missing at once."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.plans import cuda_runtime
from cnclip_builder.plans.cuda_runtime import require_cublas, require_cuda_runtime, runtime_version


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A host without a toolkit, and what is loaded on it: files whose name begins as a library of it does."""
    opened: list[str] = []

    def load(name: str, mode: int = 0) -> SimpleNamespace:
        if not Path(name).is_file():
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        opened.append(name)
        return SimpleNamespace(
            cublasLtGetProperty=property_of((11, 11, 3)),
            cublasGetProperty=property_of((11, 11, 3)),
            cudaRuntimeGetVersion=lambda version: setattr(version._obj, "value", 12080),
        )

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(cuda_runtime, "_SYSTEM", (str(tmp_path / "usr"),))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "named"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "site-packages")])
    return opened


def property_of(version: tuple[int, ...]) -> Callable[[int, Any], None]:
    return lambda which, number: setattr(number._obj, "value", version[which])


def put(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / name


@pytest.mark.parametrize("wheel", ["cuda_runtime", "cu13", "cu14"])
def test_a_wheels_folder_is_put_where_polygraphy_looks(tmp_path: Path, loaded: list[str], wheel: str) -> None:
    library = put(tmp_path / "site-packages" / "nvidia" / wheel / "lib", "libcudart.so.13")
    put(tmp_path / "site-packages" / "nvidia" / "cublas" / "lib", "libcublas.so.13")
    require_cuda_runtime()
    assert loaded == [str(library)]
    assert os.environ["LD_LIBRARY_PATH"] == f"{library.parent}{os.pathsep}{tmp_path / 'named'}"
    from polygraphy.cuda import cuda

    assert cuda.util.find_in_dirs("libcudart.so*", cuda._find_cuda_lib_dirs()) == [str(library)]


@pytest.mark.parametrize("place", ["named", "usr"])
def test_what_polygraphy_finds_itself_is_left_to_it(tmp_path: Path, loaded: list[str], place: str) -> None:
    library = put(tmp_path / place, "libcudart.so.12")
    put(tmp_path / "site-packages" / "nvidia" / "cu13" / "lib", "libcudart.so.13")
    require_cuda_runtime()
    assert loaded == [str(library)]
    assert os.environ["LD_LIBRARY_PATH"] == str(tmp_path / "named")


def test_a_missing_library_is_named_with_its_package() -> None:
    with pytest.raises(
        MissingRequirementError, match=r"libcudart\.so, .*No such file.*pip install nvidia-cuda-runtime "
    ):
        require_cuda_runtime()


def test_the_runtimes_version(tmp_path: Path) -> None:
    library = put(tmp_path / "usr", "libcudart.so.12")
    assert require_cuda_runtime() == str(library)
    assert runtime_version(str(library)) == 12080


@pytest.mark.parametrize("place", ["named", "site-packages/nvidia/cublas/lib", "usr"])
@pytest.mark.parametrize("major", [11, 12])
def test_cublas_is_opened_wherever_it_is(tmp_path: Path, loaded: list[str], place: str, major: int) -> None:
    names = [f"libcublasLt.so.{major}", f"libcublas.so.{major}"]
    files = [str(put(tmp_path / place, name)) for name in names]
    put(tmp_path / place, "libcublasLt.so.13")
    assert require_cublas() == dict.fromkeys(names, "11.11.3")
    assert loaded == files, "cuBLAS itself asks for cuBLASLt, and finds it if that is open already"


def test_the_cublas_that_tensorrts_wheel_names_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["nvidia-cuda-runtime-cu11", "nvidia-cudnn-cu11", "nvidia-cublas-cu11", "numpy ; extra == 'numpy'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needs)
    for name in ("libcublasLt.so.12", "libcublas.so.12", "libcublasLt.so.11"):
        put(tmp_path / "usr", name)
    with pytest.raises(
        MissingRequirementError,
        match=r"libcublasLt\.so\.11 and libcublas\.so\.11 are not there .*: pip install nvidia-cublas-cu11, or",
    ):
        require_cublas()
    put(tmp_path / "usr", "libcublas.so.11")
    assert list(require_cublas()) == ["libcublasLt.so.11", "libcublas.so.11"]
