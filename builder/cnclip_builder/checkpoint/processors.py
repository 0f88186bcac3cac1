"""What a transformers' folder says of preparing images and texts: what is served prepares both as cn_clip does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch, cn_clip_vocabulary
from cnclip_builder.checkpoint.parts import VOCABULARY, read_json
from cnclip_builder.errors import SettingError
from cnclip_builder.vocabulary import read_tokens

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
IMAGES, BOTH = "preprocessor_config.json", "processor_config.json"

# cn_clip.clip.image_transform's Normalize, RGB.
_NORMALISED = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}

# transformers' default of what a file leaves out (ChineseCLIPImageProcessor).
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    **_NORMALISED,
}

_LIST_TOKENS = (
    "python -c \"import json; v = json.load(open('tokenizer.json'))['model']['vocab']; print(*sorted(v, key=v.get), "
    "sep='\\n')\" > vocab.txt"
)


def own_vocabulary(folder: Path) -> Path | None:
    """Finds the vocabulary that lies in a folder, if its tokens are not cn_clip's.

    Raises:
        SettingError: cn_clip's model and tokeniser can't use it; or it is in a tokenizer.json alone, as transformers 5
            saves it, which they don't read.
    """
    beside = folder / VOCABULARY
    if beside.is_file():
        return None if read_tokens(beside) == read_tokens(cn_clip_vocabulary()) else beside
    ids = _ids_in(folder / TOKENIZER)
    if ids and ids != {token: number for number, token in enumerate(read_tokens(cn_clip_vocabulary()))}:
        raise SettingError(
            f"{folder / TOKENIZER} has other tokens than cn_clip's, and {VOCABULARY}, which is read, is not beside it: "
            f"write it there, cd {folder} && {_LIST_TOKENS}"
        )
    return None


def other_preparation(folder: Path, arch: Arch) -> str:
    """Says what transformers' processors of a folder do otherwise than cn_clip, and so the server; "" for nothing."""
    found = [*_of_images(folder, arch.resolution), *_of_texts(folder)]
    if not found:
        return ""
    return (
        f"{folder} tells of other inputs than cn_clip and what is served make: {'; '.join(found)}. Mend its files if "
        "they are wrong; else features differ from those of transformers' processor by that"
    )


def _of_images(folder: Path, resolution: int) -> Iterator[str]:
    said = _object(folder / IMAGES) or _object(folder / BOTH).get("image_processor")
    if not isinstance(said, Mapping) or not said:
        return
    says = {**_DEFAULTS, **said}
    square = {"height": resolution, "width": resolution}
    expected: dict[str, tuple[Any, ...]] = {
        "do_resize": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "resample": (3, "bicubic"),
        "size": (square,),
    }
    if says["do_center_crop"]:
        expected["crop_size"] = (square, resolution)
    for key, values in expected.items():
        if says[key] not in values:
            yield f"{key} is {says[key]}, and not {values[0]}"
    for key, value in _NORMALISED.items():
        if not _is_near(says[key], value):
            yield f"{key} is {says[key]}, and not {list(value)}"


def _is_near(said: Any, value: tuple[float, ...]) -> bool:
    try:
        return len(said) == len(value) and all(abs(a - b) < 1e-4 for a, b in zip(said, value, strict=True))
    except TypeError:
        return False


def _of_texts(folder: Path) -> Iterator[str]:
    says = _object(folder / TOKENIZER_CONFIG)
    tokenizer = _object(folder / TOKENIZER)
    normalizer = tokenizer.get("normalizer")
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "BertNormalizer":  # it counts more, as it runs
        names = {"lowercase": "do_lower_case", "handle_chinese_chars": "tokenize_chinese_chars"}
        says = {**says, **{names.get(key) or str(key): value for key, value in normalizer.items()}}
    for key in ("do_lower_case", "tokenize_chinese_chars", "strip_accents"):
        if says.get(key) is False:
            yield f"{key} is False"
    added = tokenizer.get("added_tokens")
    own = [
        str(token.get("content")) for token in added or () if isinstance(token, Mapping) and not token.get("special")
    ]
    if own:
        yield f"it has tokens of its own, such as {own[0]!r}"


def _ids_in(path: Path) -> dict[str, int]:
    model = _object(path).get("model")
    ids = model.get("vocab") if isinstance(model, Mapping) else None
    return dict(ids) if isinstance(ids, Mapping) else {}


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
