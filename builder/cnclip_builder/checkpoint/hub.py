"""Fetches files from the hubs: official checkpoints into a folder of ours, whole models into Hugging Face's cache."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnclip_builder.arch import HubFile
from cnclip_builder.checkpoint.hugging_face import family_of
from cnclip_builder.checkpoint.parts import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    VOCABULARY,
    choose_weights,
    read_index,
    read_json,
)
from cnclip_builder.checkpoint.processors import BOTH, IMAGES, TOKENIZER, TOKENIZER_CONFIG
from cnclip_builder.errors import CheckpointError, HubError, MissingRequirementError
from cnclip_builder.system.atomic import sha256_of_file

logger = logging.getLogger(__name__)

Hub = Literal["huggingface", "modelscope"]

_ORGANISATIONS: dict[Hub, str] = {"huggingface": "OFA-Sys", "modelscope": "AI-ModelScope"}
_WEB_PAGES: dict[Hub, str] = {
    "huggingface": "https://huggingface.co/{repository}/resolve/main/{filename}",
    "modelscope": "https://modelscope.cn/models/{repository}/resolve/master/{filename}",
}

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANY = 8


@dataclass(frozen=True)
class Repository:
    """A model on Hugging Face's hub.

    Attributes:
        name: with its owner, "OFA-Sys/chinese-clip-vit-base-patch16".
        revision: a branch, a tag or a commit.
    """

    name: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Reads "owner/name" or "owner/name@revision".

        Raises:
            CheckpointError: it is neither.
        """
        name, at, revision = text.partition("@")
        if not cls.is_name(name) or (at and not revision):
            raise CheckpointError(
                f"'hf:{text}' names no model: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION, such as "
                "hf:OFA-Sys/chinese-clip-vit-base-patch16"
            )
        return cls(name, revision or "main")

    @staticmethod
    def is_name(text: str) -> bool:
        """Whether a text is an owner and a name."""
        return _REPOSITORY.fullmatch(text) is not None


def download_official(official: HubFile, folder: Path, hub: Hub) -> str | None:
    """Puts an official checkpoint into a folder, or goes on with a download that broke off.

    Args:
        official: which.
        folder: where it belongs, under its own name.
        hub: where it is fetched from.

    Returns:
        The commit that it is of; None if the hub does not tell.

    Raises:
        HubError: it could not be fetched, or arrived with another content than is published.
    """
    target = folder / official.filename
    repository = f"{_ORGANISATIONS[hub]}/{official.repository}"
    logger.info("Fetching %s of %s from %s", official.filename, repository, hub)
    folder.mkdir(parents=True, exist_ok=True)
    # A folder that stays: the hubs' libraries go on there with a download that broke off.
    arriving = folder / f".{hub}"
    download = _download_from_modelscope if hub == "modelscope" else _download_from_hugging_face
    try:
        published, commit = download(repository, official.filename, arriving)
        arrived = arriving / official.filename
        if published is not None and (got := sha256_of_file(arrived)) != published:
            arrived.unlink()
            raise _exchanged(official.filename, hub, got, published)
        arrived.replace(target)
    except (MissingRequirementError, HubError):
        raise
    # The hub libraries raise errors of whatever HTTP library they use in this version.
    except Exception as error:
        page = _WEB_PAGES[hub].format(repository=repository, filename=official.filename)
        raise HubError(
            f"could not fetch {official.filename} of {repository} from {hub} ({type(error).__name__}). "
            f"Fetch {page} where there is a network, and put it at {target}; or name a checkpoint of your own, or "
            "random:0 for untrained weights"
        ) from error
    return commit


def fetch_repository(repository: Repository) -> Path:
    """Fetches what a checkpoint is read from into Hugging Face's cache, or finds it there.

    With HF_HUB_OFFLINE=1 nothing is asked of the hub, and what the cache has is taken.

    Returns:
        The folder of its files, which is named after the commit that they are of.

    Raises:
        CheckpointError: it holds no Chinese-CLIP.
        HubError: it could not be fetched, or arrived with another content than is published.
    """
    from_cache = f"({_command(repository)})"
    if _hugging_face().constants.HF_HUB_OFFLINE:
        folder = cached_repository(repository)
        if folder is None:
            raise HubError(
                f"{repository.name} at {repository.revision} is not in Hugging Face's cache, and HF_HUB_OFFLINE is "
                f"set: fetch it with a network {from_cache} into the same HF_HOME, or unset HF_HUB_OFFLINE"
            )
        return folder
    try:
        return _fetch(repository)
    except (MissingRequirementError, CheckpointError):
        raise
    # As above.
    except Exception as error:
        raise HubError(
            f"could not fetch {repository.name} at {repository.revision} from Hugging Face ({type(error).__name__}): "
            "see that the name is right and, of a private model, that HF_TOKEN is set; or fetch it where there is a "
            f"network {from_cache} and give its folder as the checkpoint"
        ) from error


def cached_repository(repository: Repository) -> Path | None:
    """Finds a model in Hugging Face's cache, without a network.

    Returns:
        The folder of its files, which is named after the commit that they are of; None if it is not there.
    """
    storage = Path(_hugging_face().constants.HF_HUB_CACHE) / f"models--{repository.name.replace('/', '--')}"
    reference = storage / "refs" / repository.revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else repository.revision
    folder = storage / "snapshots" / commit
    return folder if folder.is_dir() else None


def _fetch(repository: Repository) -> Path:
    hub = _hugging_face()
    info = hub.HfApi().model_info(repository.name, revision=repository.revision)
    commit = str(info.sha)
    names = {file.rfilename for file in info.siblings or ()}

    def fetch(name: str) -> Path:
        there = hub.try_to_load_from_cache(repository.name, name, revision=commit)
        path = Path(hub.hf_hub_download(repository.name, name, revision=commit))
        if not isinstance(there, str):
            _require_published(path)
        return path

    if CONFIG in names:
        family = family_of(read_json(fetch(CONFIG)))
        if family and ADAPTER_CONFIG not in names:
            raise CheckpointError(f"{repository.name} is {family}, not a Chinese-CLIP: name one")
    weights = choose_weights(sorted(names))
    adapter = [name for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) if name in names]
    if len(weights) > 1 or not (weights or adapter):
        found = f"has several checkpoints ({', '.join(weights[:_MANY])})" if weights else "has no checkpoint"
        raise HubError(f"{repository.name} {found}: fetch a file yourself, and give its path as the checkpoint")
    logger.info("Taking %s at commit %s from Hugging Face", repository.name, commit)
    if weights and weights[0].endswith(INDEX):
        weights += sorted({shard.name for shard in read_index(fetch(weights[0]), missing_ok=True)})
    beside = [name for name in (VOCABULARY, TOKENIZER, TOKENIZER_CONFIG, IMAGES, BOTH) if name in names]
    paths = [fetch(name) for name in [*weights, *adapter, *beside]]
    if repository.revision != commit:
        # Once more under the branch's name, so that it is found by that without a network.
        hub.hf_hub_download(repository.name, paths[0].name, revision=repository.revision)
    return paths[0].parent


def _require_published(path: Path) -> None:
    """Compares a file with the SHA-256 that the hub publishes of it: it names large files in its cache after that."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and (got := sha256_of_file(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise _exchanged(path.name, "huggingface", got, blob.name)


def _exchanged(name: str, hub: Hub, got: str, published: str) -> HubError:
    return HubError(
        f"{name} arrived from {hub} with SHA-256 {got[:12]}..., published is {published[:12]}...: it was damaged or "
        "exchanged on the way and is deleted; fetch it again"
    )


def _command(repository: Repository) -> str:
    revision = "" if repository.revision == "main" else f" --revision {repository.revision}"
    return f"`hf download {repository.name}{revision}`"


def _hugging_face() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # it gives names of its own when they are asked for, but not this module
    except ImportError:
        raise MissingRequirementError(
            "huggingface_hub is not installed: pip install 'cn-clip-triton[builder]'"
        ) from None
    return huggingface_hub


def _download_from_hugging_face(repository: str, filename: str, folder: Path) -> tuple[str | None, str | None]:
    """Puts a file into a folder; gives the SHA-256 that the hub publishes of it, and the commit that it is of."""
    hub = _hugging_face()
    published = hub.get_hf_file_metadata(hub.hf_hub_url(repository, filename))
    hub.hf_hub_download(repository, filename, revision=published.commit_hash, local_dir=folder)
    digest = published.etag if _SHA256.fullmatch(published.etag or "") else None
    return digest, published.commit_hash


def _download_from_modelscope(repository: str, filename: str, folder: Path) -> tuple[None, None]:
    """Puts a file into a folder; modelscope's library itself checks the SHA-256 that the hub publishes."""
    try:
        from modelscope.hub.file_download import model_file_download
    except ImportError:
        raise MissingRequirementError("modelscope is not installed: pip install 'cn-clip-triton[modelscope]'") from None
    model_file_download(model_id=repository, file_path=filename, local_dir=str(folder))
    return None, None
