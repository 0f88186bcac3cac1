"""A setting by itself: the values it takes, and how a command line writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from cnclip_builder.errors import SettingError
from cnclip_builder.tensors import TOWERS, Precision, Tower

Target = Literal["cpu", "gpu"]
Platform = Literal["onnxruntime", "tensorrt"]
Accelerator = Literal["none", "cuda", "tensorrt"]
Preprocess = Literal["exact", "gpu"]

PerTower = int | Mapping[Tower, int]
"""A number for both encoders, or one for each; of one that is not named the default holds."""

PER_TOWER = frozenset(
    {
        "max_batch_size",
        "encoder_instances",
        "encoder_queue_delay_microseconds",
        "encoder_threads",
        "preferred_batch_size",
        "merged_batch_size",
    }
)
"""The settings that may differ between the encoders."""

_MOST = 2**31 - 1
"""Of every number: Triton's configs have 32 bits for it."""

_MAY_BE_ZERO = frozenset(
    {
        "max_queue_size",
        "encoder_queue_delay_microseconds",
        "encoder_threads",
        "preprocess_threads",
        "merged_batch_size",
        "gpus",
    }
)

_MAY_BE_NONE = frozenset({"preferred_batch_size", "merged_batch_size", "text_lengths", "gpus", "preprocess_instances"})

_CHOICES: Mapping[str, tuple[str | bool, ...]] = {
    "target": get_args(Target),
    "precision": get_args(Precision),
    "platform": get_args(Platform),
    "accelerator": get_args(Accelerator),
    "preprocess": get_args(Preprocess),
    **dict.fromkeys(("cuda_graphs", "pinned_memory", "tf32", "reduced_decoding", "encoders_only"), (False, True)),
}


def check_value(name: str, value: Any) -> None:
    """Checks a setting by itself; what goes together is `ServingConfig`'s business.

    Raises:
        SettingError: the value is none of the setting's, or out of its range.
    """
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            choices = ", ".join(str(choice).lower() for choice in _CHOICES[name])
            raise SettingError(f"{name} is {value!r}: choose one of {choices}")
    elif name == "image_formats":
        _check_formats(name, value)
    elif value is not None or name not in _MAY_BE_NONE:
        for number in _numbers(name, value):
            _check_number(name, number)


def merged_setting(before: PerTower | None, now: PerTower | None) -> PerTower | None:
    """Lays a new value of a setting over an old one: naming one encoder leaves the other as it is."""
    if not isinstance(now, Mapping) or before is None:
        return now
    old = before if isinstance(before, Mapping) else dict.fromkeys(TOWERS, before)
    return {**old, **now}


def parse_per_tower(name: str, text: str) -> PerTower:
    """Reads a setting from the command line: "2" for both encoders, or "image=2,text=1".

    Raises:
        SettingError: it is not of that form.
    """
    if text.isascii() and text.isdecimal():
        return int(text)
    values: dict[Tower, int] = {}
    for part in text.split(","):
        tower, _, number = part.partition("=")
        if tower not in TOWERS or tower in values or not (number.isascii() and number.isdecimal()):
            raise SettingError(f"{name} is {text!r}: write a number, or image=N,text=N for one of each encoder")
        values[tower] = int(number)
    return values


def parse_lengths(text: str) -> tuple[int, ...]:
    """Reads lengths of texts from the command line: "24,40".

    Raises:
        SettingError: they are not of that form.
    """
    return _parse_numbers("text_lengths", text, "lengths in tokens", "24,40")


def parse_gpus(text: str) -> tuple[int, ...]:
    """Reads numbers of GPUs from the command line: "0,2".

    Raises:
        SettingError: they are not of that form.
    """
    return _parse_numbers("gpus", text, "numbers of GPUs", "0,2")


def _parse_numbers(name: str, text: str, what: str, example: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise SettingError(f"{name} is {text!r}: write {what} with commas between them, such as {example}")
    return tuple(map(int, parts))


def _check_formats(name: str, value: Any) -> None:
    """Asks what decodes on servers, before a build that none of them would load.

    Raises:
        SettingError: this machine's Pillow does not know a format, or it is one that is never decoded.
    """
    if not isinstance(value, str) or not re.fullmatch(r"(?:[A-Za-z0-9]+(?:,[A-Za-z0-9]+)*)?", value):
        raise SettingError(f"{name} is {value!r}: write Pillow's names of formats, such as MPEG,WMF")
    if value:
        from cnclip_pixels import image_formats  # with Pillow, which few settings need

        try:
            image_formats(value)
        except ValueError as error:
            raise SettingError(f"{name} is {value!r}: {error}") from error


def _numbers(name: str, value: Any) -> list[Any]:
    """What has to be a number: of a setting for each encoder, or of several numbers, each of them."""
    if isinstance(value, Mapping) and name in PER_TOWER and set(value) <= set(TOWERS):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) and name in ("text_lengths", "gpus") else [value]


def _check_number(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        form = ' or {"image": N, "text": N}' if name in PER_TOWER else ""
        raise SettingError(f"{name} is {number!r}: give a whole number{form}")
    least = 0 if name in _MAY_BE_ZERO else 1
    if not least <= number <= _MOST:
        bound = f"at least {least}" if number < least else f"at most {_MOST}"
        raise SettingError(f"{name} is {number}: choose {bound}")
