"""The architectures of Chinese-CLIP: names, sizes and where their official checkpoints are."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from cnclip_builder.errors import MissingRequirementError, SettingError, UnknownArchError
from cnclip_builder.vocabulary import require_rows

DEFAULT_CONTEXT_LENGTH = 52
"""Tokens of a text that all official checkpoints were trained with (cn_clip.clip.tokenize)."""

DEFAULT_ARCH = "ViT-B-16"
"""What is built where neither an architecture nor a checkpoint is named."""

DEFAULT_HEAD_WIDTH = 64
"""Of an image encoder's heads, where `cn_clip.clip.model.CLIP` is not told another."""

_SHARES = frozenset({"text_attention_probs_dropout_prob", "text_hidden_dropout_prob", "text_initializer_range"})
_RESNET_STAGES = 4
_LARGEST_SIZE = 10_000_000

MIN_CONTEXT_LENGTH = 3
"""`[CLS]`, one token, `[SEP]`."""


@dataclass(frozen=True)
class HubFile:
    """The official checkpoint of an architecture.

    Attributes:
        repository: the repository's name, the same on Hugging Face and ModelScope but for the organisation.
        filename: the file in it, which is also its name on disk.
    """

    repository: str
    filename: str


@dataclass(frozen=True)
class Arch:
    """An architecture.

    Attributes:
        name: as Chinese-CLIP writes it, "ViT-B-16".
        model_info: the keyword arguments of `cn_clip.clip.model.CLIP`.
        hub: its official checkpoint, if there is one.
        file: the JSON file that describes it, if it is no official one.
        vocabulary: the file of its tokens, if it is not cn_clip's.
        of_checkpoint: it is known from a checkpoint alone, so that no word but `--checkpoint` names it.
    """

    name: str
    model_info: Mapping[str, Any]
    hub: HubFile | None = None
    file: Path | None = None
    vocabulary: Path | None = None
    of_checkpoint: bool = False

    @property
    def option(self) -> str:
        """What names it on the command line."""
        return str(self.file or self.name)

    @property
    def options(self) -> list[str]:
        """The words that name it on a command line, beside the checkpoint's."""
        arch = [] if self.of_checkpoint else ["--arch", self.option]
        return [*arch, *(["--vocabulary", str(self.vocabulary)] if self.vocabulary else [])]

    @property
    def vocabulary_file(self) -> Path:
        """The file of its tokens."""
        return self.vocabulary or cn_clip_vocabulary()

    def require_vocabulary(self) -> None:
        """Checks that the text encoder's embedding has a row for every token.

        Raises:
            SettingError: it has not, or the vocabulary can't be used.
        """
        rows = int(self.model_info["vocab_size"])
        require_rows(self.name, rows, self.vocabulary_file, is_given=self.vocabulary is not None)

    @property
    def slug(self) -> str:
        """The name in file and model names: "vit-b-16"."""
        return self.name.lower()

    @property
    def resolution(self) -> int:
        """Side of the square images that the image encoder takes, in pixels."""
        return int(self.model_info["image_resolution"])

    @property
    def embedding_size(self) -> int:
        """Length of a feature."""
        return int(self.model_info["embed_dim"])

    @property
    def vision_head_width(self) -> int:
        """Width of a head of the image encoder."""
        return int(self.model_info.get("vision_head_width", DEFAULT_HEAD_WIDTH))

    def computes_as(self, model_info: Mapping[str, Any]) -> bool:
        """Whether a model of these arguments computes the same: what counts in training alone may differ."""
        mine = {"vision_head_width": DEFAULT_HEAD_WIDTH, **self.model_info}
        theirs = {"vision_head_width": DEFAULT_HEAD_WIDTH, **model_info}
        return all(mine.get(key) == theirs.get(key) for key in (mine.keys() | theirs.keys()) - _SHARES)

    @property
    def max_context_length(self) -> int:
        """Position embeddings of the text encoder: the longest text it takes, in tokens."""
        return int(self.model_info["text_max_position_embeddings"])

    @property
    def default_context_length(self) -> int:
        """Tokens of a text where nothing else is said: as all official checkpoints, or fewer of a shorter model."""
        return min(DEFAULT_CONTEXT_LENGTH, self.max_context_length)

    def checked_context_length(self, context_length: int) -> int:
        """Returns the context length if the text encoder takes it.

        Raises:
            SettingError: it is too short or beyond the position embeddings.
        """
        if not MIN_CONTEXT_LENGTH <= context_length <= self.max_context_length:
            raise SettingError(
                f"context length {context_length} is out of range for {self.name}: it has "
                f"{self.max_context_length} position embeddings, so choose {MIN_CONTEXT_LENGTH} to "
                f"{self.max_context_length} (cn_clip's checkpoints were trained with {DEFAULT_CONTEXT_LENGTH})"
            )
        return context_length


# Name, vision and text configs in cn_clip's model_configs, and the official checkpoint
# (cn_clip/clip/utils.py, _MODEL_INFO and _MODELS).
_OFFICIAL = (
    ("RN50", "RN50", "RBT3-chinese", HubFile("chinese-clip-rn50", "clip_cn_rn50.pt")),
    (
        "ViT-B-16",
        "ViT-B-16",
        "RoBERTa-wwm-ext-base-chinese",
        HubFile("chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
    ),
    (
        "ViT-L-14",
        "ViT-L-14",
        "RoBERTa-wwm-ext-base-chinese",
        HubFile("chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
    ),
    (
        "ViT-L-14-336",
        "ViT-L-14-336",
        "RoBERTa-wwm-ext-base-chinese",
        HubFile("chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"),
    ),
    (
        "ViT-H-14",
        "ViT-H-14",
        "RoBERTa-wwm-ext-large-chinese",
        HubFile("chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
    ),
)

ARCH_NAMES: tuple[str, ...] = tuple(name for name, *_ in _OFFICIAL)


def get_arch(name: str, vocabulary: Path | None = None) -> Arch:
    """Looks an architecture up.

    Args:
        name: "ViT-B-16" and so on, in any case; or the path of a JSON file with the keyword arguments of
            `cn_clip.clip.model.CLIP`, for a model of other sizes, which is then named after the file.
        vocabulary: the file of its tokens, if it is not cn_clip's.

    Raises:
        UnknownArchError: there is none of this name, or the file is no such description.
        SettingError: the vocabulary can't be used for it.
    """
    if vocabulary is not None:
        arch = replace(get_arch(name), vocabulary=vocabulary)
        arch.require_vocabulary()
        return arch
    if name.endswith(".json"):
        return _load_custom_arch(Path(name))
    for arch in official_archs():
        if arch.slug == name.lower():
            return arch
    raise UnknownArchError(
        f"no architecture is named {name!r}: choose one of {', '.join(ARCH_NAMES)}, or name a .json file with the "
        "keyword arguments of cn_clip.clip.model.CLIP"
    )


@cache
def official_archs() -> tuple[Arch, ...]:
    """The five architectures of Chinese-CLIP, with their sizes read from the installed cn_clip.

    Raises:
        MissingRequirementError: cn_clip is not installed.
    """
    configs = _cn_clip_folder() / "clip" / "model_configs"
    return tuple(
        Arch(name, _read_model_info(configs / f"{vision}.json", configs / f"{text}.json"), hub)
        for name, vision, text, hub in _OFFICIAL
    )


def cn_clip_vocabulary() -> Path:
    """The path of cn_clip's `vocab.txt`, which all official models share."""
    return _cn_clip_folder() / "clip" / "vocab.txt"


def _cn_clip_folder() -> Path:
    # Found without importing it, since cn_clip.clip imports torch.
    spec = importlib.util.find_spec("cn_clip")
    if spec is None or not spec.submodule_search_locations:
        raise MissingRequirementError("cn_clip is not installed: pip install 'cn-clip-triton[builder]'")
    return Path(spec.submodule_search_locations[0])


def _read_model_info(*files: Path) -> Mapping[str, Any]:
    info: dict[str, Any] = {}
    for file in files:
        info.update(json.loads(file.read_bytes()))  # bytes may begin with a byte order mark
    if isinstance(info.get("vision_layers"), str):
        info["vision_layers"] = json.loads(info["vision_layers"])  # cn_clip writes RN50's as "[3,4,6,3]"
    return info


def can_name_arch(name: str) -> bool:
    """Whether a model of other sizes than the official ones may have this name."""
    named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None
    return named and all(arch.slug != name.lower() for arch in official_archs())


def read_sizes(file: Path) -> dict[str, Any]:
    """Reads the arguments of `cn_clip.clip.model.CLIP` from a JSON file, which may leave some out.

    Raises:
        UnknownArchError: there is no such file, it holds something else, or an argument can't be.
    """
    try:
        info = dict(_read_model_info(file))
    except FileNotFoundError:
        raise UnknownArchError(f"{file}: no such file; official architectures are {', '.join(ARCH_NAMES)}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnknownArchError(f"{file} does not describe an architecture: {error!r}") from error
    unknown = set(info) - _arguments() - {"vision_head_width"}
    if unknown:
        raise UnknownArchError(
            f"{file} does not describe an architecture: CLIP takes no {', '.join(sorted(unknown))}; take it out"
        )
    odd = sorted(f"{key} {value!r}" for key, value in info.items() if not _is_plausible(key, value))
    if odd:
        raise UnknownArchError(f"{file} does not describe an architecture: {', '.join(odd)} can't be; mend it")
    return info


def lacking_sizes(info: Mapping[str, Any]) -> list[str]:
    """The arguments that `cn_clip.clip.model.CLIP` needs beside these."""
    return sorted(_arguments() - set(info))


def _arguments() -> set[str]:
    return set(get_arch(DEFAULT_ARCH).model_info)


def _load_custom_arch(file: Path) -> Arch:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file.stem):
        raise UnknownArchError(
            f"{file}: the file's name becomes the model's name, so use letters, digits, '.', '_' and '-' only"
        )
    if not can_name_arch(file.stem):
        raise UnknownArchError(f"{file}: {file.stem} is an official architecture's name; rename the file")
    info = read_sizes(file)
    if missing := lacking_sizes(info):
        raise UnknownArchError(
            f"{file} does not describe an architecture: it lacks {', '.join(missing)}; write them, or name a "
            "CHECKPOINT whose tensors tell them"
        )
    return Arch(file.stem, info, file=file)


def _is_plausible(key: str, value: Any) -> bool:
    """Whether `cn_clip.clip.model.CLIP` can take this value of an argument."""
    if key == "text_hidden_act":
        return isinstance(value, str)
    if key in _SHARES:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    if key == "vision_layers" and isinstance(value, list):
        return len(value) == _RESNET_STAGES and all(_is_plausible("", layers) for layers in value)
    if key == "vision_patch_size" and value is None:
        return True  # a ResNet's
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_SIZE
