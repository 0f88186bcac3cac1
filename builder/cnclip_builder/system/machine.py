"""What this machine has, and the defaults that follow from it."""

from __future__ import annotations

import shutil
import subprocess


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU; asks nvidia-smi, which comes with every driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout
