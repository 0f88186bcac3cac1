"""Whether this machine has a GPU for this process, and if not, why."""

from __future__ import annotations

import os
import re
import shutil
import subprocess


def has_gpu() -> bool:
    """Whether a GPU is there for this process: the NVIDIA driver lists one that CUDA_VISIBLE_DEVICES does not hide."""
    return not missing_gpu()


def missing_gpu() -> str:
    """Why no GPU is there for this process, in a few words; empty where there is one.

    Asks nvidia-smi, which comes with every driver and does not look at CUDA_VISIBLE_DEVICES itself.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return "there is no nvidia-smi"
    try:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not run: {error}"
    if listing.returncode != 0:
        said = (listing.stdout + listing.stderr).strip().splitlines()
        return f"nvidia-smi says {said[0]!r}" if said else f"nvidia-smi ended with {listing.returncode}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _shows_one(listing.stdout, visible):
        return ""
    if _shows_one(listing.stdout, None):
        return f"CUDA_VISIBLE_DEVICES is {visible!r} and hides all that nvidia-smi lists"
    return "nvidia-smi lists none"


def _shows_one(listing: str, visible: str | None) -> bool:
    """Whether CUDA would show a GPU, as its programming guide has it: a list ends at the first entry that is none.

    Args:
        listing: lines such as "GPU 0: NVIDIA A10 (UUID: GPU-...)" and, below, "  MIG 1g.5gb Device 0: (UUID: MIG-...)".
        visible: numbers or beginnings of UUIDs, apart by commas; None for all.
    """
    numbers = re.findall(r"^GPU (\d+):", listing, re.MULTILINE)
    if visible is None or not numbers:
        return bool(numbers)
    first = visible.split(",")[0].strip()
    if first.isdecimal():
        return str(int(first)) in numbers
    return bool(first) and any(uuid.startswith(first) for uuid in re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)", listing))
