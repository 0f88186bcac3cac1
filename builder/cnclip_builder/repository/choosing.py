"""Where each setting comes from: what is asked for now, what their owner chose before, or the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnclip_builder.errors import SettingError
from cnclip_builder.repository.manifest import MANIFEST_NAME
from cnclip_builder.repository.serving import (
    BOUNDED_BY_BATCH,
    SETTINGS,
    ServingConfig,
    default_accelerator,
    default_max_batch_size,
    default_precision,
    default_target,
    within_batches,
)
from cnclip_builder.repository.settings import PER_TOWER, Platform, Target, check_value, merged_setting

# Settings whose defaults follow from the target, or that were chosen for what it can do.
_DEPEND_ON_TARGET = frozenset(
    {
        "target",
        "precision",
        "platform",
        "accelerator",
        "preprocess",
        "cuda_graphs",
        "tf32",
        "max_batch_size",
        "preferred_batch_size",
        "merged_batch_size",
        "encoder_instances",
        "encoder_threads",
        "encoder_queue_delay_microseconds",
        "text_lengths",
        "gpus",
        "preprocess_instances",
        "preprocess_threads",
    }
)


def check_setting(name: str, value: Any) -> None:
    """Checks a setting by itself; what goes together is `ServingConfig`'s business.

    Raises:
        SettingError: there is none of this name, or the value is out of its range.
    """
    if name not in SETTINGS:
        raise SettingError(f"there is no setting {name!r}: the settings are {', '.join(SETTINGS)}")
    check_value(name, value)


def choose_settings(
    chosen: Mapping[str, Any], kept: Mapping[str, Any], context_length: int
) -> tuple[ServingConfig, tuple[str, ...]]:
    """Settles how models are served: what is asked for now, then what their owner chose before, then the defaults.

    With another target, what was chosen for the old one says nothing of the new: those settings begin anew.

    Args:
        chosen: settings by name, as asked for now.
        kept: settings by name, as the repository's manifest holds them; empty for a new model.
        context_length: most tokens of a text by default.

    Returns:
        The settings, and the names of those that are kept and differ from the defaults.

    Raises:
        SettingError: a name is unknown, or a value out of its range.
    """
    for name, value in chosen.items():
        check_setting(name, value)
    for name, value in kept.items():
        try:
            check_setting(name, value)
        except SettingError as error:
            raise SettingError(f"in {MANIFEST_NAME}: {error}; --no-keep-settings begins anew") from error
    before = dict(kept)
    target: Target = chosen.get("target") or (
        "gpu" if chosen.get("platform") == "tensorrt" else before.get("target", default_target())
    )
    if target != before.get("target"):
        before = {name: value for name, value in before.items() if name not in _DEPEND_ON_TARGET}
    if "platform" in chosen and chosen["platform"] != before.get("platform", ServingConfig.platform):
        before = {name: value for name, value in before.items() if name not in ("accelerator", "cuda_graphs")}
    if chosen.get("precision", "fp32") != "fp32":
        before.pop("tf32", None)  # chosen for FP32
    platform: Platform = chosen.get("platform") or before.get("platform", ServingConfig.platform)
    defaults: dict[str, Any] = {
        "precision": default_precision(target),
        "max_batch_size": default_max_batch_size(target, platform),
        "accelerator": default_accelerator(target, platform),
        "context_length": context_length,
    }
    values: dict[str, Any] = {"target": target, **defaults, **before}
    for name, value in chosen.items():
        values[name] = merged_setting(values.get(name), value) if name in PER_TOWER else value
    for name in BOUNDED_BY_BATCH:
        if name not in chosen:  # it may have been chosen for larger batches
            values[name] = within_batches(values.get(name), values["max_batch_size"], target, platform)
    plain = ServingConfig(target=target, **defaults)
    told = tuple(
        name
        for name, value in before.items()
        if name not in chosen and name != "target" and value != getattr(plain, name)
    )
    return ServingConfig(**values), told
