"""Deletes the versions of a model repository that are not served, and if asked to, those that need not be.

Servers may be polling it: a version is taken out of its model's config first, and deleted when they have seen that.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_builder.errors import RepositoryError, SettingError
from cnclip_builder.repository.serving import DEFAULT_SETTLE_S
from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.repository.sums import SUMS_NAME, files_of_store, vouch_for_none
from cnclip_builder.repository.values import KINDS
from cnclip_builder.system.atomic import held_still

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruning:
    """What is to be taken out of a repository.

    Attributes:
        unserved: the versions to delete, by model; among them those of `contracted`.
        contracted: by model, the `ModelConfig` that names fewer versions than the present one.
    """

    unserved: Mapping[str, tuple[int, ...]]
    contracted: Mapping[str, Any]


def plan_pruning(url: str, keep: int | None = None) -> Pruning:
    """Finds what can go.

    Args:
        url: the repository: a folder, or `s3://BUCKET/PREFIX`.
        keep: how many versions of each model stay served, the newest; those that an ensemble is pinned to, or that
            encoders tell clients of, stay in any case. None leaves all that are served.

    Raises:
        SettingError: `keep` is less than 1.
        RepositoryError: there is no model, or the repository can't be read.
    """
    if keep is not None and keep < 1:
        raise SettingError(f"{keep} versions can't be kept: keep at least 1 (--keep)")
    store = RepositoryStore(url)
    configs = {model: store.config(model) for model in store.models()}
    if not configs:
        raise RepositoryError(f"{store.url} holds no models: nothing to prune; check the address")
    pinned = _pinned(configs)
    unserved: dict[str, tuple[int, ...]] = {}
    contracted: dict[str, Any] = {}
    for model, config in configs.items():
        if not config.version_policy.HasField("specific"):
            continue  # not ours: what Triton serves of it depends on what is there
        served = set(config.version_policy.specific.versions)
        kept = served if keep is None else {*sorted(served)[-keep:], *(served & pinned.get(model, set()))}
        if kept != served:
            contracted[model] = smaller = type(config)()
            smaller.CopyFrom(config)
            smaller.version_policy.specific.versions[:] = sorted(kept)
        if gone := tuple(version for version in store.versions(model) if version not in kept):
            unserved[model] = gone
    return Pruning(unserved, contracted)


def prune_repository(
    url: str,
    keep: int | None = None,
    *,
    settle_s: float = DEFAULT_SETTLE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Pruning:
    """Deletes what `plan_pruning` finds. What a killed publication has left behind goes too: run none meanwhile.

    Args:
        url: as for `plan_pruning`.
        keep: as for `plan_pruning`.
        settle_s: how long servers have to take in the new configs before files are deleted, in seconds; there is no
            wait where configs stay as they are.
        sleep: waits.

    Returns:
        What was deleted.

    Raises:
        SettingError: as `plan_pruning`.
        RepositoryError: as `plan_pruning`, or the repository can't be written.
    """
    store = RepositoryStore(url)
    with _locked_here(url):
        pruning = plan_pruning(url, keep)
        vouched = store.manifest().files is not None
        if pruning.contracted or pruning.unserved:
            vouch_for_none(store)
        for model, config in pruning.contracted.items():
            store.write_config(model, config)
        # Before the files: the builder writes configs that name what the manifest lists.
        _prune_manifest(store)
        if pruning.contracted:
            sleep(settle_s)
        for model, versions in pruning.unserved.items():
            for version in versions:
                logger.info("Deleting version %d of %s", version, model)
                # First, so that the rest of a folder whose deletion is cut off can't pass for whole.
                store.delete(f"{model}/{version}/{SUMS_NAME}")
                store.delete_folder(f"{model}/{version}")
        if vouched and (pruning.contracted or pruning.unserved):
            store.write_manifest(store.manifest().models, files_of_store(store))
        return pruning


def _locked_here(url: str) -> contextlib.AbstractContextManager[None]:
    """Keeps builds out of a local repository meanwhile; a lock would make the folders above one that is not there."""
    return held_still(Path(url), alone=True) if Path(url).is_dir() else contextlib.nullcontext()


def _pinned(configs: Mapping[str, Any]) -> dict[str, set[int]]:
    """The versions of each model that ensembles call by their number, or that encoders tell clients of."""
    pinned: dict[str, set[int]] = {}
    for name, config in configs.items():
        if "version" in config.parameters and config.parameters["version"].string_value.isdecimal():
            pinned.setdefault(name, set()).add(int(config.parameters["version"].string_value))
        for step in config.ensemble_scheduling.step:
            pinned.setdefault(step.model_name, set()).add(step.model_version)
    return pinned


def _prune_manifest(store: RepositoryStore) -> None:
    """Takes the versions out of the manifest that no model of a name serves, and a name that has none left."""
    manifest = store.manifest()
    pruned = {}
    for name, versions in manifest.models.items():
        served = {version for kind in KINDS for version in store.served_versions(f"{name}-{kind}")}
        if left := {number: entry for number, entry in versions.items() if int(number) in served}:
            pruned[name] = left
    if pruned != manifest.models:
        gone = {f"{name}-{kind}" for name in manifest.models.keys() - pruned.keys() for kind in KINDS}
        files = {path: digest for path, digest in (manifest.files or {}).items() if path.split("/")[0] not in gone}
        store.write_manifest(pruned, None if manifest.files is None else files)
