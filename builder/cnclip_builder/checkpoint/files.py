"""Reads a checkpoint's file, whatever its format, without running code from it."""

from __future__ import annotations

import os
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

from cnclip_builder.errors import CheckpointError, MissingRequirementError

_NO_MEMORY = re.compile(
    "Cannot allocate memory|not enough memory|can't allocate memory|bad_alloc|failed to map segment"
)

_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
}

_POINTER = b"version https://git-lfs"

# What trainers keep beside tensors, and nothing here reads: numpy's numbers, one of which cn_clip's own scheduler makes
# the learning rate, and arrays, as of random states; arguments, and paths among them; torch.__version__.
_UNREAD = {
    **{f"numpy.{core}.multiarray.scalar": "number of numpy's" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": "numpy array" for core in ("core", "_core")},
    **{"numpy.dtype": "dtype", "numpy.ndarray": "numpy array", "argparse.Namespace": "Namespace"},
    **{"pathlib.PosixPath": "path", "pathlib._local.PosixPath": "path", "torch.torch_version.TorchVersion": "version"},
}


class Unread:
    """Stands in an object's place, whatever it is made of; the class of each kind is called by what it stands for."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def read_checkpoint_file(path: Path) -> Any:
    """Reads a PyTorch file or a safetensors file.

    Returns:
        What it holds. Tensors are mapped privately from the file where its format allows it, so that only what is used
        is read.

    Raises:
        CheckpointError: the file is missing, a folder, damaged, or holds more than plain data.
        MissingRequirementError: it is a safetensors file, and the library for those is not installed; or there is too
            little memory.
    """
    require_file(path)
    try:
        _require_no_pointer(path)
        return _read_safetensors(path) if _is_safetensors(path) else _read_pytorch(path)
    except (CheckpointError, MissingRequirementError):
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}): change its permissions, or copy it") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_explain_unpickling(path, error)) from error
    # Damaged bytes make the readers raise whatever the byte meant: TypeError, IndexError, OverflowError, ...
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(_torchscript_message(path)) from error
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise MissingRequirementError(
                f"there is no memory for {path} ({path.stat().st_size / 1e9:.1f} GB): free some, raise the limit of "
                f"this process (ulimit -v), or build on a larger machine ({_first_line(error)})"
            ) from error
        if (packed := _packed(path)) is not None:
            raise CheckpointError(f"{path} is {packed}: unpack it, and give the file that is in it") from error
        raise CheckpointError(
            f"{path} can't be read as a checkpoint; it may be truncated or only partly downloaded "
            f"({path.stat().st_size} bytes): fetch it again ({_first_line(error)})"
        ) from error


def local_path(named: str) -> Path:
    """The path that somebody wrote; the `~` of a user whom this machine doesn't know is a letter of a name."""
    return Path(os.path.expanduser(named))  # noqa: PTH111 - pathlib's ends there in a RuntimeError


def require_file(path: Path) -> None:
    """Refuses a path at which no checkpoint's file can be.

    Raises:
        CheckpointError: nothing is there, or a folder or a pipe.
    """
    if not path.exists():
        raise CheckpointError(
            f"no checkpoint at {path}: give the path of a .pt file, 'random:0' for untrained weights, or nothing for "
            "the official checkpoint"
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the path of the .pt or .safetensors file in it")
    if not path.is_file():
        raise CheckpointError(f"{path} is no file that can be read twice: copy what comes out of it into one")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise CheckpointError(f"{shown}: torch opens only files whose names are UTF-8: rename it") from None


def require_intact(path: Path) -> None:
    """Compares a file's content with the checksums in it; PyTorch writes some since 1.6, and reads past them.

    Raises:
        CheckpointError: a part of it is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    # As above: whatever a damaged byte meant.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: fetch it again ({_first_line(error)})") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: {damaged} in it has another checksum than was written; fetch it again"
        )


def _require_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{path} is Git LFS's pointer to a file, and not the file: run git lfs pull there")


def _is_safetensors(path: Path) -> bool:
    """By its beginning: the length of a JSON header, then the header."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingRequirementError(
            f"{path} is a safetensors file, and safetensors is not installed: pip install 'cn-clip-triton[builder]'"
        ) from None
    return load_file(path)


def _read_pytorch(path: Path) -> Any:
    import torch

    _require_plain_parts(path)
    stand_ins: list[Any] = [(type(told, (Unread,), {}), name) for name, told in _UNREAD.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        warnings.simplefilter("ignore")  # of TorchScript archives, which get an error of ours
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6


def _require_plain_parts(path: Path) -> None:
    """Refuses an archive that was packed anew: PyTorch would take compressed bytes for numbers where it maps them.

    Raises:
        CheckpointError: a tensor of it is compressed.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        packed = [part for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
    # Of TorchScript, code is compressed; it gets an error of its own.
    if tensors := [part.filename for part in packed if "/data/" in part.filename]:
        raise CheckpointError(
            f"{path} was packed anew, and {tensors[0]} in it is compressed, which torch.save does not do: give the "
            "file as it was saved, or save it again"
        )


def _packed(path: Path) -> str | None:
    """What an archive is that is no checkpoint, by its beginning."""
    with path.open("rb") as file:
        head = file.read(263)
    found = (kind for magic, kind in _ARCHIVES.items() if head.startswith(magic))
    return next(found, "a tar archive" if head[257:262] == b"ustar" else None)


def _explain_unpickling(path: Path, error: pickle.UnpicklingError) -> str:
    if "TorchScript" in str(error):
        return _torchscript_message(path)
    if (packed := _packed(path)) is not None:
        return f"{path} is {packed}: unpack it, and give the file that is in it"
    unsafe = re.search(r"(?:GLOBAL|function|class) ([\w.]+\.[\w.]+)", str(error))
    if unsafe:
        return (
            f"{path} refers to {unsafe.group(1)}, which loading it would have to run or import; nothing of it was "
            "run. Save it again as plain tensors: torch.save({'state_dict': model.state_dict()}, path)"
        )
    return f"{path} is no PyTorch checkpoint, or a damaged one: fetch it again ({_first_line(error)})"


def _torchscript_message(path: Path) -> str:
    return (
        f"{path} is a TorchScript archive, as OpenAI publishes its CLIP models, and no Chinese-CLIP checkpoint: "
        "use a clip_cn_*.pt file, or one fine-tuned from it with cn_clip"
    )


def _first_line(error: BaseException) -> str:
    # torch begins with a page on `weights_only`, and says what it met behind that.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0].partition(". ")[0][:200] if lines else type(error).__name__
