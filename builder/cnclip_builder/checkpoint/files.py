"""Reads a checkpoint's file, whatever its format, without running code from it."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

from cnclip_builder.errors import CheckpointError, MissingRequirementError


def read_checkpoint_file(path: Path) -> Any:
    """Reads a PyTorch file or a safetensors file.

    Returns:
        What it holds. Tensors are mapped privately from the file where its format allows it, so that only what is used
        is read.

    Raises:
        CheckpointError: the file is missing, a folder, damaged, or holds more than plain data.
        MissingRequirementError: it is a safetensors file, and the library for those is not installed.
    """
    require_file(path)
    try:
        return _read_safetensors(path) if _is_safetensors(path) else _read_pytorch(path)
    except (CheckpointError, MissingRequirementError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_explain_unpickling(path, error)) from error
    # Damaged bytes make the readers raise whatever the byte meant: TypeError, IndexError, OverflowError, ...
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(_torchscript_message(path)) from error
        raise CheckpointError(
            f"{path} can't be read as a checkpoint; it may be truncated or only partly downloaded "
            f"({path.stat().st_size} bytes): fetch it again ({_first_line(error)})"
        ) from error


def require_file(path: Path) -> None:
    """Refuses a path at which no checkpoint's file can be.

    Raises:
        CheckpointError: nothing is there, or a folder.
    """
    if not path.exists():
        raise CheckpointError(
            f"no checkpoint at {path}: give the path of a .pt file, 'random:0' for untrained weights, or nothing for "
            "the official checkpoint"
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the path of the .pt or .safetensors file in it")
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript archives, which get an error of ours
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6


def _explain_unpickling(path: Path, error: pickle.UnpicklingError) -> str:
    if "TorchScript" in str(error):
        return _torchscript_message(path)
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
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
