"""Where a checkpoint comes from: a path, the official hub, or random weights."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.files import require_file
from cnclip_builder.errors import CheckpointError, HubError, MissingRequirementError
from cnclip_builder.system.atomic import replacing_file, sha256_of_file

logger = logging.getLogger(__name__)

Hub = Literal["huggingface", "modelscope"]

_ORGANISATIONS: dict[Hub, str] = {"huggingface": "OFA-Sys", "modelscope": "AI-ModelScope"}
_WEB_PAGES: dict[Hub, str] = {
    "huggingface": "https://huggingface.co/{repository}/resolve/main/{filename}",
    "modelscope": "https://modelscope.cn/models/{repository}/resolve/master/{filename}",
}


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk.

    Attributes:
        path: the file.
        source: what the user asked for: a path, "official" or "random:SEED".
        is_random: its weights were never trained; for load tests only.
    """

    path: Path
    source: str
    is_random: bool = False


def fetch_checkpoint(source: str | None, arch: Arch, download_root: Path, hub: Hub) -> CheckpointFile:
    """Gets a checkpoint onto the disk.

    Args:
        source: a path; "random:SEED"; or None for the official checkpoint.
        arch: the architecture it is to be of.
        download_root: folder of downloaded and random checkpoints. An official checkpoint that is already in it is
            used as it is.
        hub: where official checkpoints are fetched from.

    Raises:
        CheckpointError: the path doesn't exist, the seed is no number, or the architecture has no official one.
        HubError: the hub could not be reached, or has no such file.
    """
    if source is None:
        return CheckpointFile(_download(arch, download_root, hub), "official")
    if source.startswith("random:"):
        seed = source.removeprefix("random:")
        if not re.fullmatch(r"\d{1,9}", seed):
            raise CheckpointError(f"{source!r}: after 'random:' comes a seed, a number of up to 9 digits: random:0")
        return CheckpointFile(_make_random(arch, int(seed), download_root), source, is_random=True)
    path = Path(source).expanduser()
    require_file(path)
    return CheckpointFile(path, source)


def _download(arch: Arch, download_root: Path, hub: Hub) -> Path:
    if arch.hub is None:
        raise CheckpointError(f"{arch.name} has no official checkpoint: name one, or use random:0")
    target = download_root / arch.hub.filename
    if target.is_file():
        return target
    repository = f"{_ORGANISATIONS[hub]}/{arch.hub.repository}"
    logger.info("Fetching %s of %s from %s", arch.hub.filename, repository, hub)
    download_root.mkdir(parents=True, exist_ok=True)
    # A folder that stays: the hubs' libraries go on there with a download that broke off.
    arriving = download_root / f".{hub}"
    download = _download_from_modelscope if hub == "modelscope" else _download_from_hugging_face
    try:
        published = download(repository, arch.hub.filename, arriving)
        arrived = arriving / arch.hub.filename
        if published is not None and (got := sha256_of_file(arrived)) != published:
            arrived.unlink()
            raise HubError(
                f"{arch.hub.filename} arrived from {hub} with SHA-256 {got[:12]}..., published is {published[:12]}...: "
                "it was damaged or exchanged on the way and is deleted; fetch it again"
            )
        arrived.replace(target)
    except (MissingRequirementError, HubError):
        raise
    # The hub libraries raise errors of whatever HTTP library they use in this version.
    except Exception as error:
        page = _WEB_PAGES[hub].format(repository=repository, filename=arch.hub.filename)
        raise HubError(
            f"could not fetch {arch.hub.filename} of {repository} from {hub} ({type(error).__name__}). "
            f"Fetch {page} where there is a network, and put it at {target}; or name a checkpoint of your own, or "
            "random:0 for untrained weights"
        ) from error
    return target


def _download_from_hugging_face(repository: str, filename: str, folder: Path) -> str | None:
    """Puts a file into a folder; returns the SHA-256 that the hub publishes of it."""
    try:
        from huggingface_hub import get_paths_info, hf_hub_download
    except ImportError:
        raise MissingRequirementError(
            "huggingface_hub is not installed: pip install 'cn-clip-triton[builder]'"
        ) from None
    hf_hub_download(repository, filename, local_dir=folder)
    (info,) = get_paths_info(repository, filename)
    lfs = getattr(info, "lfs", None)
    return str(lfs.sha256) if lfs else None


def _download_from_modelscope(repository: str, filename: str, folder: Path) -> None:
    """Puts a file into a folder; modelscope's library itself checks the SHA-256 that the hub publishes."""
    try:
        from modelscope.hub.file_download import model_file_download
    except ImportError:
        raise MissingRequirementError("modelscope is not installed: pip install 'cn-clip-triton[modelscope]'") from None
    model_file_download(model_id=repository, file_path=filename, local_dir=str(folder))


def _make_random(arch: Arch, seed: int, folder: Path) -> Path:
    """Writes a checkpoint of freshly initialised weights, in the form that cn_clip writes."""
    target = folder / f"{arch.slug}.random-{seed}.pt"
    if target.is_file():
        return target
    import torch
    from cn_clip.clip.model import CLIP

    from cnclip_builder.checkpoint.load import make_meta_model

    make_meta_model(arch)  # tells sizes that suit no model
    logger.info("Making untrained %s weights with seed %d", arch.name, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**arch.model_info)
    state_dict = {f"module.{name}": value for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_file(target) as partial:
        torch.save({"epoch": 0, "name": f"random:{seed}", "state_dict": state_dict}, partial)
    return target
