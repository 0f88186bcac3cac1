"""Repositories of encoders alone: what is in them, what they tell clients, and how they are changed and published."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch, cn_clip_vocabulary
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.cli.app import app
from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.choosing import choose_settings
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.repository.pruning import prune_repository
from cnclip_builder.repository.publishing import publish_repository
from cnclip_builder.repository.render import parse_config
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.sharing import check_place
from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.repository.values import KINDS
from cnclip_builder.repository.write import RepositoryEntry, add_version
from typer.testing import CliRunner

from tests.builder.repository.published import SERVING as PUBLISHED
from tests.builder.repository.published import check_what_a_server_sees, write_repository
from tests.builder.repository.test_sums import real

FULL = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=4)
ALONE = replace(FULL, encoders_only=True)
PUBLISHED_ALONE = replace(PUBLISHED, encoders_only=True)


def models(repository: Path) -> list[str]:
    return sorted(path.name for path in repository.iterdir() if path.is_dir())


def config(repository: Path, model: str) -> Any:
    return parse_config((repository / model / "config.pbtxt").read_bytes(), model)


def test_the_encoders_are_those_of_the_whole_and_all_else_is_gone(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, FULL), repository)
    add_version(RepositoryEntry("b", 1, tiny_vit, tiny_artefacts, FULL), repository)
    whole = {path: digest for path, digest in real(repository).items() if path.startswith("a-")}

    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, ALONE), repository)
    assert [name for name in models(repository) if name.startswith("a-")] == ["a-image-encoder", "a-text-encoder"]
    assert len([name for name in models(repository) if name.startswith("b-")]) == 6
    assert load_manifest(repository).files == real(repository)
    ours = {path: digest for path, digest in real(repository).items() if path.startswith("a-")}
    assert ours.items() <= whole.items()  # configs, too: an encoder does not change by what is beside it
    assert not [path for path in ours if path.endswith(".py")]
    assert {config(repository, name).backend for name in models(repository) if name.startswith("a-")} == {"onnxruntime"}
    assert load_manifest(repository).models["a"]["1"]["serving"]["encoders_only"] is True

    # And back: it is one setting among others.
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, FULL), repository)
    assert {path: digest for path, digest in real(repository).items() if path.startswith("a-")} == whole


def test_what_it_tells_clients_that_make_token_ids(tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path: Path) -> None:
    add_version(RepositoryEntry("a", 3, tiny_vit, tiny_artefacts, ALONE), tmp_path / "repository")
    told = config(tmp_path / "repository", "a-text-encoder").parameters
    digest = hashlib.sha256(cn_clip_vocabulary().read_bytes()).hexdigest()
    assert told["vocabulary_sha256"].string_value == digest
    assert told["text_lengths"].string_value == "40"
    assert told["version"].string_value == "3"
    assert told["checkpoint_sha256"].string_value == tiny_artefacts.checkpoint.sha256
    assert "vocabulary_sha256" not in config(tmp_path / "repository", "a-image-encoder").parameters


def test_the_next_build_keeps_to_it() -> None:
    serving, told = choose_settings({}, ALONE.as_dict(), 40)
    assert serving.encoders_only
    assert "encoders_only" in told


@pytest.mark.parametrize(("there", "asked"), [(FULL, ALONE), (ALONE, FULL)])
def test_versions_of_a_model_share_what_is_beside_the_encoders(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, there: ServingConfig, asked: ServingConfig
) -> None:
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, there), repository)
    serves = "encoders alone, and" if there is ALONE else "encoders and what prepares for them, and"
    with pytest.raises(RepositoryError, match=rf"a version 1 serves {serves} .*under another name \(NAME=, --name\)"):
        check_place("a", 2, tiny_vit, asked, repository)
    check_place("a", 1, tiny_vit, asked, repository)
    check_place("b", 2, tiny_vit, asked, repository)


def test_show_names_the_encoders(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for version in (1, 2):
        add_version(RepositoryEntry("a", version, tiny_vit, tiny_artefacts, ALONE), repository)
    shown = CliRunner().invoke(app, ["show", str(repository), "--check"])
    assert shown.exit_code == 0, shown.output
    assert "a, version 1: tiny-vit, onnxruntime on cpu\n  served by   no ensemble; only by its number\n" in shown.stdout
    assert "a, version 2: tiny-vit, onnxruntime on cpu\n  served by   a-image-encoder, a-text-encoder\n" in shown.stdout


# --- Where servers poll.


@pytest.fixture(params=["memory", "folder"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4()}/models" if request.param == "memory" else str(tmp_path / "served")


def send(source: Path, destination: str) -> Any:
    return publish_repository(source, destination, sleep=lambda _: None)


def test_versions_are_published_one_after_the_other_and_pruned(
    tmp_path: Path, tiny_vit: Arch, destination: str
) -> None:
    source = tmp_path / "r"
    store = RepositoryStore(destination)
    for contents in ({1: 1}, {1: 1, 2: 2}, {1: 1, 2: 2, 3: 3}):
        send(write_repository(source, tiny_vit, "a", contents, PUBLISHED_ALONE), destination)
        check_what_a_server_sees(store)
        assert store.models() == ["a-image-encoder", "a-text-encoder"]
        assert store.config("a-image-encoder").parameters["version"].string_value == str(max(contents))
    prune_repository(destination, 1, sleep=lambda _: None)
    check_what_a_server_sees(store)
    assert store.versions("a-text-encoder") == [3]
    assert set(store.manifest().models["a"]) == {"3"}


def test_the_version_that_clients_are_told_of_is_not_pruned(tmp_path: Path, tiny_vit: Arch) -> None:
    """After a step back it is older than the newest."""
    repository = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2, 3: 3}, PUBLISHED_ALONE)
    store = RepositoryStore(str(repository))
    for kind in ("image", "text"):
        stepped_back = store.config(f"a-{kind}-encoder")
        stepped_back.parameters["version"].string_value = "1"
        store.write_config(f"a-{kind}-encoder", stepped_back)
    prune_repository(str(repository), 1, sleep=lambda _: None)
    assert store.versions("a-image-encoder") == [1, 3]


def test_ensembles_that_are_served_are_not_left_without_their_encoders(
    tmp_path: Path, tiny_vit: Arch, destination: str
) -> None:
    source = tmp_path / "r"
    send(write_repository(source, tiny_vit, "a", {1: 1}), destination)
    store = RepositoryStore(destination)
    before = {path: store.read(path) for path in store.files("")}
    write_repository(source, tiny_vit, "a", {2: 2}, PUBLISHED_ALONE)
    with pytest.raises(
        RepositoryError, match=r"serves a-image, a-image-preprocess, .* this repository has encoders of a"
    ):
        send(source, destination)
    assert {path: store.read(path) for path in store.files("")} == before


def test_what_prepares_may_come_to_encoders_alone(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    source = tmp_path / "r"
    send(write_repository(source, tiny_vit, "a", {1: 1}, PUBLISHED_ALONE), destination)
    send(write_repository(source, tiny_vit, "a", {1: 1, 2: 2}), destination)
    store = RepositoryStore(destination)
    check_what_a_server_sees(store)
    assert store.models() == sorted(f"a-{kind}" for kind in KINDS)
