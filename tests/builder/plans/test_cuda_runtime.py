"""CUDA's runtime library on hosts that have only the driver: found in pip's wheels, or told for missing at once."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.plans import cuda_runtime
from cnclip_builder.plans.cuda_runtime import require_cuda_runtime


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A host without a toolkit, and what is loaded on it: files whose name begins as a library of it does."""
    opened: list[str] = []

    def load(name: str) -> None:
        if not Path(name).is_file():
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        opened.append(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(cuda_runtime, "_SYSTEM", (str(tmp_path / "usr"),))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "named"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "site-packages")])
    return opened


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
