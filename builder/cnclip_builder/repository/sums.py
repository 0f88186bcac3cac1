"""The SHA-256 of every file that a repository serves, so that a changed one is told before it is served.

A manifest has them under `files`, by their path in the repository: configs, Python models and their modules,
vocabularies, inputs that warm models up, encoders, weights and plans, and the `SHA256SUMS` of published versions.
`cnclip-serve` compares them. What Python leaves beside a model that it runs (`__pycache__`) is none of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.system.atomic import sha256_of_file

SUMS_NAME = "SHA256SUMS"
"""The last file of a published version's folder: the hashes of the others, as `sha256sum --check` reads them."""

_LEFT_BY_PYTHON = "__pycache__"


def files_of_folder(repository: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Hashes the files of a repository here.

    Args:
        repository: its folder.
        known: hashes by path that are taken as they are.
    """
    paths = (path for path in repository.glob("*/**/*") if path.is_file() and _LEFT_BY_PYTHON not in path.parts)
    files = {path.relative_to(repository).as_posix(): path for path in paths}
    return {name: known.get(name) or sha256_of_file(path) for name, path in sorted(files.items())}


def files_of_store(store: RepositoryStore) -> dict[str, str]:
    """Hashes the files of a published repository; those of a version that was sent have the hashes sent with them."""
    files: dict[str, str] = {}
    for model in store.models():
        paths = [path for path in store.files(model) if _LEFT_BY_PYTHON not in path.split("/")]
        sent: dict[str, str] = {}
        for path in paths:
            folder, _, name = path.rpartition("/")
            if name == SUMS_NAME and (sums := store.read(path)) is not None:
                told = re.findall(r"^([0-9a-f]{64})  (.+)$", sums.decode(errors="replace"), re.MULTILINE)
                sent |= {f"{folder}/{file}": digest for digest, file in told}
        for path in paths:
            digest = sent.get(path)
            if digest is None and (content := store.read(path)) is not None:
                digest = hashlib.sha256(content).hexdigest()
            if digest is not None:
                files[path] = digest
    return dict(sorted(files.items()))


def vouch_for_none(store: RepositoryStore) -> None:
    """Takes the hashes out of a published repository's manifest, before its files change one by one."""
    manifest = store.manifest()
    if manifest.files is not None:
        store.write_manifest(manifest.models)
