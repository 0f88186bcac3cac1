"""Uploads a model repository to where a polling Triton reads it, so that none ever sees half a version.

A version is data that no config names until it is whole, and that never changes once one does. What is served changes
by configs alone, each of which is replaced in one step, in an order in which every ensemble's steps are always served:

1. The files of every new version. `SHA256SUMS` comes last in each version's folder and says that it is whole.
2. Encoders' and Python models' configs, naming what is served now and what is to be.
3. After a pause longer than Triton's poll: the ensembles' configs, each pinned to its new version.
4. After another: encoders' and Python models' configs again, without what is no longer wanted (if there is any).
5. The manifest, with the hashes of all that is there now. Meanwhile it vouches for none: a server that starts then must
   not take what is on its way for changed.

A publication that was cut off is run again, and goes on: versions that are whole are not sent twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_builder.errors import RepositoryError, SettingError
from cnclip_builder.repository.manifest import MANIFEST_NAME, load_manifest, reading
from cnclip_builder.repository.render import parse_config
from cnclip_builder.repository.serving import DEFAULT_SETTLE_S
from cnclip_builder.repository.sharing import check_one_tensorrt
from cnclip_builder.repository.store import CONFIG_NAME, RepositoryStore
from cnclip_builder.repository.sums import SUMS_NAME, files_of_folder, files_of_store, vouch_for_none
from cnclip_builder.repository.values import KINDS, kinds_recorded
from cnclip_builder.repository.write import check_repository
from cnclip_builder.system.atomic import held_still, sha256_of_file

logger = logging.getLogger(__name__)

# What all versions of a model share, since they share its config.
_SHARED_FIELDS = ("backend", "platform", "default_model_filename", "cc_model_filenames", "input", "output")
_SHARED_PARAMETERS = ("arch", "context_length", "resolution")


@dataclass(frozen=True)
class Publication:
    """What a publication did.

    Attributes:
        sent: the versions that were uploaded, `NAME:VERSION`.
        dropped: the versions that were served before and are no more; `prune` deletes their files.
    """

    sent: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A model to be published.

    Attributes:
        of: the name that it is one of the models of.
        folder: its folder here.
        config: its `ModelConfig`.
        served: its `ModelConfig` at the destination; None if it is new there.
    """

    of: str
    folder: Path
    config: Any
    served: Any

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def versions(self) -> list[int]:
        return _versions(self.config)

    @property
    def served_versions(self) -> list[int]:
        return [] if self.served is None else _versions(self.served)

    def transition(self) -> Any:
        """The config under which the present ensembles and the new ones both work."""
        config = type(self.config)()
        config.CopyFrom(self.config)
        if self.served is not None:
            config.version_policy.specific.versions[:] = sorted({*self.versions, *self.served_versions})
            config.max_batch_size = max(config.max_batch_size, self.served.max_batch_size)
        return config


def publish_repository(
    source: Path,
    destination: str,
    names: Collection[str] = (),
    *,
    changed: bool = False,
    settle_s: float = DEFAULT_SETTLE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Publication:
    """Makes a repository at the destination serve what one here does; models of other names there stay.

    Only one publication to a destination may run at a time.

    Args:
        source: the repository, as `cnclip-build repository` writes it.
        destination: the address of the served one: a folder, or `s3://BUCKET/PREFIX`.
        names: which of its names to publish; none for all.
        changed: publish files, too, that were changed since they were built.
        settle_s: how long to wait between steps that a server must see one after the other, in seconds: longer than
            its `--repository-poll-secs`. There is no wait where nothing is served yet.
        sleep: waits.

    Raises:
        RepositoryError: a file is not what the manifest says; a version that is served there has other files than
            here; the models of a name differ in what versions must share; or the destination can't be read or written.
        SettingError: the repository has no such name.
    """
    with held_still(source):
        here = load_manifest(source)
        manifest = here.models
        if unknown := sorted(set(names) - set(manifest)):
            raise SettingError(f"{source} holds no {', '.join(unknown)}: it has {', '.join(sorted(manifest))}")
        check_repository(source)
        if here.files is not None and not changed:
            _require_unchanged(source, names or manifest, here.files)
        store = RepositoryStore(destination)
        chosen = sorted(names or manifest)
        with reading(f"{source / MANIFEST_NAME} or {store.url}/{MANIFEST_NAME}"):
            check_one_tensorrt({**store.manifest().models, **{name: manifest[name] for name in chosen}})
            kinds = {name: kinds_recorded(manifest[name]) for name in chosen}
        for name in chosen:
            _require_all_replaced(name, kinds[name], store)
        models = [_open(name, source / f"{name}-{kind}", store) for name in chosen for kind in kinds[name]]
        sums = {
            (model.name, version): _sums(model.folder / str(version)) for model in models for version in model.versions
        }
        copied = _check_served_versions(models, sums, store)
        vouch_for_none(store)
        for name, version in copied:
            store.write(f"{name}/{version}/{SUMS_NAME}", sums[name, version])
        sent = _send_versions(models, sums, store)
        _switch(models, store, lambda: sleep(settle_s))
        served = {**store.manifest().models, **{name: manifest[name] for name in chosen}}
        store.write_manifest(served, None if here.files is None else files_of_store(store))
        return Publication(tuple(sent), tuple(_dropped(models)))


def _require_all_replaced(name: str, kinds: Collection[str], store: RepositoryStore) -> None:
    """Refuses encoders alone where ensembles are served: those would go on asking for versions that may be gone."""
    left = [f"{name}-{kind}" for kind in KINDS if kind not in kinds and store.config(f"{name}-{kind}") is not None]
    if left:
        raise RepositoryError(
            f"{store.url} serves {', '.join(left)}, and this repository has encoders of {name} alone: publish it to "
            "another address, or build it under another name (NAME=, --name)"
        )


def _open(name: str, folder: Path, store: RepositoryStore) -> _Model:
    path = folder / CONFIG_NAME
    model = _Model(name, folder, parse_config(path.read_bytes(), str(path)), store.config(folder.name))
    if model.served is not None:
        different = [
            *(name for name in _SHARED_FIELDS if getattr(model.config, name) != getattr(model.served, name)),
            *(name for name in _SHARED_PARAMETERS if _parameter(model.config, name) != _parameter(model.served, name)),
        ]
        if different:
            raise RepositoryError(
                f"{store.url} serves a {model.name} with another {', '.join(different)}, and versions of a model must "
                "share it: build and publish this one under another name (NAME=, --name)"
            )
    return model


def _require_unchanged(source: Path, names: Collection[str], told: Mapping[str, str]) -> None:
    """Refuses to spread a file that was changed or damaged since it was built."""
    models = {f"{name}-{kind}" for name in names for kind in KINDS}
    found = {path: digest for path, digest in files_of_folder(source, {}).items() if path.split("/")[0] in models}
    wanted = {path: digest for path, digest in told.items() if path.split("/")[0] in models}
    for path in sorted({*found, *wanted}):
        if found.get(path) != wanted.get(path):
            raise RepositoryError(
                f"{source / path} is not what {MANIFEST_NAME} says: build it again; or, if you made the change, "
                "publish it with --changed"
            )


def _check_served_versions(
    models: Sequence[_Model], sums: Mapping[tuple[str, int], bytes], store: RepositoryStore
) -> list[tuple[str, int]]:
    """Refuses to touch a version that servers may be loading at this moment.

    Returns:
        The versions, with their models, that are there whole and were not published: copied by hand, say.
    """
    copied = []
    for model in models:
        for version in set(model.versions) & set(model.served_versions):
            there = store.read(f"{model.name}/{version}/{SUMS_NAME}")
            if there is None:
                there = _sums_of_store(store, f"{model.name}/{version}")
                copied.append((model.name, version))
            if there != sums[model.name, version]:
                raise RepositoryError(
                    f"{store.url} serves a version {version} of {model.name} with other files, and a served version "
                    "can't be replaced without a server seeing half of it: build this one as a new version "
                    "(MODEL_VERSION=, --model-version) and publish that"
                )
    return copied


def _send_versions(
    models: Sequence[_Model], sums: Mapping[tuple[str, int], bytes], store: RepositoryStore
) -> list[str]:
    """Uploads what no config names yet."""
    sent = set()
    for model in models:
        for version in model.versions:
            if _send_version(model.folder, version, sums[model.name, version], store):
                sent.add((model.of, version))
    return [f"{name}:{version}" for name, version in sorted(sent)]


def _send_version(folder: Path, version: int, sums: bytes, store: RepositoryStore) -> bool:
    """Uploads a version's folder, unless it is there, whole and the same; of one that was, what was deleted since."""
    target = f"{folder.name}/{version}"
    files = {f"{folder.name}/{path.relative_to(folder)}": path for path in _files(folder / str(version))}
    there = set(store.files(target))
    was_sent = store.read(f"{target}/{SUMS_NAME}") == sums
    if not was_sent:
        store.delete(f"{target}/{SUMS_NAME}")
        for stray in there - set(files):
            store.delete(stray)
    missing = {path: file for path, file in files.items() if not was_sent or path not in there}
    for path, file in missing.items():
        logger.info("Uploading %s", path)
        store.upload(file, path)
    if not was_sent:
        store.write(f"{target}/{SUMS_NAME}", sums)
    return not was_sent or bool(missing)


def _switch(models: Sequence[_Model], store: RepositoryStore, settle: Callable[[], None]) -> None:
    """Moves what is served from the present versions to the new ones."""
    ensembles = [model for model in models if model.config.HasField("ensemble_scheduling")]
    steps = [model for model in models if model not in ensembles]
    for model in steps:
        _send_shared_files(model, store)
        _put_config(model, model.transition(), store)
    # Also where nothing was put: the publication that did may have been killed a moment ago.
    if any(model.served is not None and model.served != model.config for model in ensembles):
        settle()
    for model in ensembles:
        _put_config(model, model.config, store)
    if any(model.transition() != model.config for model in steps):
        settle()
        for model in steps:
            _put_config(model, model.config, store)


def _send_shared_files(model: _Model, store: RepositoryStore) -> None:
    """Uploads what belongs to all versions, such as the warm-up's input."""
    for path in _files(model.folder):
        relative = path.relative_to(model.folder)
        if path.name == CONFIG_NAME or relative.parts[0].isdecimal():
            continue
        content = path.read_bytes()
        if store.read(f"{model.name}/{relative}") != content:
            store.write(f"{model.name}/{relative}", content)


def _put_config(model: _Model, config: Any, store: RepositoryStore) -> None:
    """Replaces a model's config if it says something else: what is written anew, a server loads anew."""
    if store.config(model.name) == config:
        return
    logger.info("%s: versions %s", model.name, _versions(config))
    if config == model.config:
        store.upload(model.folder / CONFIG_NAME, f"{model.name}/{CONFIG_NAME}")
    else:
        store.write_config(model.name, config)


def _dropped(models: Sequence[_Model]) -> list[str]:
    dropped = {
        (model.of, version)
        for model in models
        if not model.config.HasField("ensemble_scheduling")
        for version in set(model.served_versions) - set(model.versions)
    }
    return [f"{name}:{version}" for name, version in sorted(dropped)]


def _sums(folder: Path) -> bytes:
    return "".join(f"{sha256_of_file(path)}  {path.relative_to(folder)}\n" for path in _files(folder)).encode()


def _sums_of_store(store: RepositoryStore, version: str) -> bytes:
    paths = sorted(path for path in map(Path, store.files(version)) if "__pycache__" not in path.parts)
    return "".join(f"{store.sha256(str(path))}  {path.relative_to(version)}\n" for path in paths).encode()


def _files(folder: Path) -> list[Path]:
    """A folder's files, without what a server that has served it here has left in it."""
    left = {SUMS_NAME, "__pycache__"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and left.isdisjoint(path.parts))


def _versions(config: Any) -> list[int]:
    return list(config.version_policy.specific.versions)


def _parameter(config: Any, name: str) -> str | None:
    return config.parameters[name].string_value if name in config.parameters else None
