"""Every served file's hash stands in the manifest, and stays true while a repository is built, tuned and published."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnclip_bench.serving_settings import read_settings, write_settings
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.repository.contents import changed_files
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.manifest import load_manifest, update_serving, write_manifest
from cnclip_builder.repository.pruning import prune_repository
from cnclip_builder.repository.publishing import publish_repository
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.repository.sums import files_of_folder, files_of_store
from cnclip_builder.repository.write import add_version

from tests.builder.repository.published import write_repository
from tests.conftest import umask_of

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)


def real(folder: Path) -> dict[str, str]:
    """All files below a model's folder, hashed by the standard library."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*/**/*")
        if path.is_file()
    }


def test_what_is_built_is_vouched_for_and_a_later_build_vouches_for_no_change(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path
) -> None:
    repository = write_repository(tmp_path / "repository", tiny_vit, "b", {1: 1})
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    files = load_manifest(repository).files
    assert files == real(repository)
    for path in ("a-text-tokenize/1/vocab.txt", "a-text-tokenize/1/model.py", "a-image-preprocess/1/cnclip_pixels.py",
                 "a-image/config.pbtxt", "a-image-encoder/1/model.onnx", "a-text-encoder/warmup/text-40"):  # fmt: skip
        assert path in files
    changed = repository / "a-image-preprocess" / "1" / "model.py"
    vouched = files["a-image-preprocess/1/model.py"]
    changed.write_text(changed.read_text() + "# not the builder's\n")
    (repository / "a-text-tokenize/1/vocab.txt").unlink()
    # Whoever deletes a version whole, or all of a name, does not miss it.
    for folder in (repository / "a-image-encoder/1", *repository.glob("b-*")):
        shutil.rmtree(folder)
    add_version(RepositoryEntry("a", 2, tiny_vit, tiny_artefacts, SERVING), repository)
    assert changed_files(repository) == {
        "a-image-preprocess/1/model.py": "changed",
        "a-text-tokenize/1/vocab.txt": "missing",
    }
    assert list(load_manifest(repository).models) == ["a"]
    after = load_manifest(repository).files
    assert after is not None
    assert after.pop("a-text-tokenize/1/vocab.txt") == files["a-text-tokenize/1/vocab.txt"]
    assert after["a-image-preprocess/1/model.py"] == vouched != real(repository)["a-image-preprocess/1/model.py"]
    assert {**after, "a-image-preprocess/1/model.py": ""} == {**real(repository), "a-image-preprocess/1/model.py": ""}


def test_whoever_may_read_a_repository_may_read_what_is_built_into_it(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, ordinary_user: None
) -> None:
    with umask_of(0o022):
        repository = write_repository(tmp_path / "repository", tiny_vit, "b", {1: 1})
    (repository / "b-image/1").chmod(0o555)
    (closed_before := tmp_path / "elsewhere").touch(0o600)
    (repository / "private").mkdir(0o700)
    (repository / "b-image/link").symlink_to(closed_before)
    (repository / "b-image/.#config.pbtxt").symlink_to("of-an-editor")
    with umask_of(0o077):
        add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    closed = [path for path in repository.rglob("*") if ~path.lstat().st_mode & (0o055 if path.is_dir() else 0o044)]
    assert closed == [repository / "private"]  # which no build has made
    assert closed_before.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [".repository.lock", "elsewhere", "repository"]


def vouched(folder: Path) -> Path:
    write_manifest(folder, load_manifest(folder).models, files_of_folder(folder, {}))
    return folder


def test_tuned_configs_are_vouched_for_anew(tmp_path: Path, tiny_vit: Arch) -> None:
    repository = vouched(write_repository(tmp_path / "r", tiny_vit, "a", {1: 1}))
    settings = read_settings(repository, "a", "image")
    write_settings(repository, "a", "image", type(settings)(**{**vars(settings), "encoder_instances": 3}))
    update_serving(repository, "a", {"encoder_instances": 3})
    assert read_settings(repository, "a", "image").encoder_instances == 3
    assert load_manifest(repository).files == real(repository)


def contents(store: RepositoryStore) -> dict[str, str]:
    return {
        path: hashlib.sha256(store.read(path) or b"").hexdigest() for path in store.files("") if path != "manifest.json"
    }


@pytest.fixture
def destination() -> RepositoryStore:
    return RepositoryStore(f"memory://{uuid.uuid4()}/models")


def test_what_is_published_pruned_and_added_to_is_vouched_for(
    tmp_path: Path, tiny_vit: Arch, destination: RepositoryStore
) -> None:
    source = vouched(write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2}))
    publish_repository(source, destination.url, sleep=lambda _: None)
    assert destination.manifest().files == contents(destination)
    other = vouched(write_repository(tmp_path / "o", tiny_vit, "b", {1: 5}))
    publish_repository(other, destination.url, sleep=lambda _: None)
    assert destination.manifest().files == contents(destination)
    prune_repository(destination.url, 1, sleep=lambda _: None)
    assert "a-image-encoder/1/model.onnx" not in contents(destination)
    assert destination.manifest().files == contents(destination)


def test_what_was_sent_with_its_hash_is_not_read_to_be_hashed(
    tmp_path: Path, tiny_vit: Arch, destination: RepositoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = vouched(write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2}))
    publish_repository(source, destination.url, sleep=lambda _: None)
    expected, read = contents(destination), RepositoryStore.read

    def small(self: RepositoryStore, path: str) -> bytes | None:
        assert "model.onnx" not in path
        return read(self, path)

    monkeypatch.setattr(RepositoryStore, "read", small)
    assert files_of_store(destination) == expected


def test_a_name_that_was_deleted_by_hand(tmp_path: Path, tiny_vit: Arch, destination: RepositoryStore) -> None:
    """As docs/building.md says to take one away: it is not missed, and what is left can be published."""
    source = write_repository(tmp_path / "r", tiny_vit, "b", {1: 1})
    vouched(write_repository(source, tiny_vit, "a", {1: 1}))
    publish_repository(source, destination.url, sleep=lambda _: None)
    for folder in source.glob("b-*"):
        shutil.rmtree(folder)
    assert list(load_manifest(source).models) == ["a"]  # a build of b begins anew, without its versions and settings
    (source / "a-image-encoder/1/model.onnx").write_bytes(b"changed")
    prune_repository(str(source))
    assert list(json.loads((source / "manifest.json").read_text())["models"]) == ["a"]
    assert changed_files(source) == {"a-image-encoder/1/model.onnx": "changed"}
    publish_repository(vouched(source), str(tmp_path / "served"), sleep=lambda _: None)
    for folder in [folder for folder in destination.models() if folder.startswith("b-")]:
        destination.delete_folder(folder)
    prune_repository(destination.url)
    assert list(destination.manifest().models) == ["a"]
    assert destination.manifest().files == contents(destination)


def test_a_server_that_starts_at_any_moment_is_told_of_no_change(
    tmp_path: Path, tiny_vit: Arch, destination: RepositoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is true or vouches for nothing, after every single change."""
    source = vouched(write_repository(tmp_path / "r", tiny_vit, "a", {1: 1}))
    newer = vouched(write_repository(tmp_path / "n", tiny_vit, "a", {1: 1, 2: 2}))
    looks = 0

    def changed(self: RepositoryStore, *arguments: Any, original: Callable[..., None]) -> None:
        nonlocal looks
        original(self, *arguments)
        looks += 1
        files = destination.manifest().files
        assert files is None or files == contents(destination)

    for method in ("write", "upload", "delete", "delete_folder"):
        original = getattr(RepositoryStore, method)
        monkeypatch.setattr(
            RepositoryStore, method, lambda self, *arguments, o=original: changed(self, *arguments, original=o)
        )
    for repository in (source, newer, newer):
        publish_repository(repository, destination.url, sleep=lambda _: None)
    prune_repository(destination.url, 1, sleep=lambda _: None)
    assert looks > 30
    assert destination.manifest().files == contents(destination)


def test_a_repository_of_an_older_builder_is_published_as_it_is(
    tmp_path: Path, tiny_vit: Arch, destination: RepositoryStore
) -> None:
    publish_repository(write_repository(tmp_path / "r", tiny_vit, "a", {1: 1}), destination.url, sleep=lambda _: None)
    assert "files" not in json.loads(destination.read("manifest.json") or b"")


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged on Linux alone")
def test_the_published_manifest_is_not_written_through(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path
) -> None:
    """What a build links from the published repository it must not write to: it may yet fail."""
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    (tmp_path / "same").hardlink_to(repository / "manifest.json")
    before = (tmp_path / "same").read_bytes()
    add_version(RepositoryEntry("a", 2, tiny_vit, tiny_artefacts, SERVING), repository)
    assert (tmp_path / "same").read_bytes() == before
