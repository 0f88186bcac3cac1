"""Pruning: what is served, and what ensembles need, stays; at no moment does a config name what is gone."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.errors import RepositoryError, SettingError
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.repository.pruning import plan_pruning, prune_repository
from cnclip_builder.repository.publishing import publish_repository
from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.repository.write import check_repository

from tests.builder.repository.published import check_what_a_server_sees, served, write_repository
from tests.commands import run_command_text


@pytest.fixture(params=["memory", "folder"])
def repository(request: pytest.FixtureRequest, tmp_path: Path, tiny_vit: Arch) -> str:
    """Versions 1 to 3 served, the ensembles pinned to 3; version 4 half uploaded; another name with one version."""
    source = write_repository(tmp_path / "source", tiny_vit, "a", {1: 1, 2: 2, 3: 3})
    write_repository(source, tiny_vit, "b", {1: 1})
    url = f"memory://{uuid.uuid4()}/models" if request.param == "memory" else str(tmp_path / "served")
    publish_repository(source, url)
    RepositoryStore(url).write("a-image-encoder/4/model.onnx", b"half")
    return url


def prune(url: str, keep: int | None = None) -> Any:
    return prune_repository(url, keep, sleep=lambda _: None)


def test_only_what_is_not_served(repository: str) -> None:
    assert prune(repository).unserved == {"a-image-encoder": (4,)}
    store = RepositoryStore(repository)
    assert store.versions("a-image-encoder") == [1, 2, 3]
    check_what_a_server_sees(store)
    assert prune(repository).unserved == {}


def test_the_newest(repository: str) -> None:
    pruning = prune(repository, 2)
    assert pruning.unserved["a-image-encoder"] == (1, 4)
    assert pruning.unserved["a-text-tokenize"] == (1,)
    store = RepositoryStore(repository)
    assert served(store, "a") == ([3], [2, 3])
    assert served(store, "b") == ([1], [1])
    assert store.versions("a-image-encoder") == [2, 3]
    assert set(json.loads(store.read("manifest.json") or b"")["models"]["a"]) == {"2", "3"}
    check_what_a_server_sees(store)


def test_a_folder_in_one_that_cannot_be_written_to(tmp_path: Path, tiny_vit: Arch, ordinary_user: None) -> None:
    """As a store of one's own, where the root user has made it: there is no place for a lock beside it."""
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2})
    publish_repository(source, str(tmp_path / "roots/store"))
    (tmp_path / "roots").chmod(0o555)
    try:
        assert prune(str(tmp_path / "roots/store"), 1).unserved["a-image-encoder"] == (1,)
    finally:
        (tmp_path / "roots").chmod(0o755)


def test_what_an_ensemble_is_pinned_to_stays(tmp_path: Path, tiny_vit: Arch) -> None:
    """After a step back the ensembles serve an older version than the newest."""
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2})
    for kind in ("image", "text"):
        config = source / f"a-{kind}/config.pbtxt"
        config.write_text(config.read_text().replace("model_version: 2", "model_version: 1").replace("[ 2 ]", "[ 1 ]"))
        (source / f"a-{kind}/2").rename(source / f"a-{kind}/1")
    check_repository(source)
    pruning = plan_pruning(str(source), 1)
    assert (pruning.unserved, pruning.contracted) == ({}, {})


def test_files_go_after_servers_have_had_time(repository: str) -> None:
    store = RepositoryStore(repository)
    waits: list[float] = []

    def settle(seconds: float) -> None:
        waits.append(seconds)
        assert served(store, "a") == ([3], [3])
        assert store.versions("a-image-encoder") == [1, 2, 3, 4]

    prune_repository(repository, 1, settle_s=9, sleep=settle)
    assert waits == [9]
    assert store.versions("a-image-encoder") == [3]


def test_at_every_moment_servers_see_what_works(repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RepositoryStore(repository)
    for method in ("write", "delete", "delete_folder"):
        original = getattr(RepositoryStore, method)

        def changed(self: RepositoryStore, *arguments: Any, _original: Any = original) -> None:
            _original(self, *arguments)
            check_what_a_server_sees(store)

        monkeypatch.setattr(RepositoryStore, method, changed)
    prune(repository, 1)
    assert served(store, "a") == ([3], [3])


def test_the_builders_own_repository(tmp_path: Path, tiny_vit: Arch) -> None:
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2})
    prune(str(source), 1)
    check_repository(source)
    assert list(load_manifest(source).models["a"]) == ["2"]
    assert not (source / "a-image-encoder/1").exists()


def test_models_of_others_are_left_alone(repository: str) -> None:
    store = RepositoryStore(repository)
    store.write("theirs/config.pbtxt", b'name: "theirs" backend: "python"')
    store.write("theirs/1/model.py", b"")
    prune(repository, 1)
    assert store.versions("theirs") == [1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="0 versions can't be kept"):
        plan_pruning(str(tmp_path), 0)
    with pytest.raises(RepositoryError, match="holds no models"):
        plan_pruning(str(tmp_path))
    with pytest.raises(RepositoryError, match="holds no models"):
        prune_repository(str(tmp_path / "mistyped" / "path"))
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_changes_nothing(tmp_path: Path, tiny_vit: Arch) -> None:
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2})
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    result = run_command_text("cnclip-build", "prune", source, "--keep", 1, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "would delete  a-text-encoder  1" in result.stdout
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
