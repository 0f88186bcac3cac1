"""Publishing: what a polling server may see at any moment, and after a publication that was cut off anywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.errors import MissingRequirementError, RepositoryError, SettingError
from cnclip_builder.repository.pruning import prune_repository
from cnclip_builder.repository.publishing import SUMS_NAME, Publication, publish_repository
from cnclip_builder.repository.store import RepositoryStore
from fsspec.implementations.memory import MemoryFileSystem

from tests.builder.repository.published import (
    SERVING,
    check_what_a_server_sees,
    check_whole,
    larger_batches,
    parsed,
    served,
    write_repository,
)
from tests.commands import run_command_text, run_script
from tests.conftest import ROOT, umask_of

Watch = Callable[[str], None]


class CutOff(Exception):
    """A publication that ended here."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Watch], None]:
    """Calls a function with the path after every change of any store."""

    def install(after: Watch) -> None:
        for method in ("write", "upload", "delete", "delete_folder"):
            original = getattr(RepositoryStore, method)

            def changed(self: RepositoryStore, *arguments: Any, _original: Any = original) -> None:
                _original(self, *arguments)
                after(arguments[-1] if isinstance(arguments[-1], str) else arguments[0])

            monkeypatch.setattr(RepositoryStore, method, changed)

    return install


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    """To list a folder of it takes as long as there are files in all."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "folder"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4()}/models" if request.param == "memory" else str(tmp_path / "served")


def publish(source: Path, destination: str, *names: str) -> Publication:
    return publish_repository(source, destination, names, sleep=lambda _: None)


def test_everything_arrives(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1, 2: 2})
    assert publish(source, destination) == Publication(sent=("a:1", "a:2"), dropped=())
    store = RepositoryStore(destination)
    here = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    there = {path: store.read(path) for path in store.files("") if not path.endswith(SUMS_NAME)}
    assert there == here
    check_what_a_server_sees(store)
    assert publish(source, destination) == Publication((), ())


def test_sha256sum_understands_the_sums(tmp_path: Path, tiny_vit: Arch) -> None:
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1})
    publish(source, str(tmp_path / "served"))
    folder = tmp_path / "served/a-image-encoder/1"
    subprocess.run(["sha256sum", "--check", "--strict", SUMS_NAME], cwd=folder, check=True, capture_output=True)


UPDATES = {
    "first": ({}, {1: 1}),
    "a version more": ({1: 1}, {1: 1, 2: 2}),
    "a version instead": ({1: 1}, {2: 2}),
    "back to the old one": ({1: 1, 2: 2}, {1: 1}),
    "from three to two": ({1: 1, 2: 2, 3: 3}, {3: 3, 4: 4}),
}


@pytest.mark.parametrize(("update", "batches"), [*((update, 8) for update in UPDATES), ("a version instead", 4)])
def test_a_server_that_polls_sees_only_what_works(
    tmp_path: Path, tiny_vit: Arch, watch: Any, monkeypatch: pytest.MonkeyPatch, update: str, batches: int
) -> None:
    """Whenever it polls, wherever the publication is cut off, and after it has been run again."""
    for module in ("publishing", "store", "write"):
        monkeypatch.setattr(f"cnclip_builder.repository.{module}.parse_config", lambda text, _: parsed(text))
    before, after = UPDATES[update]
    if before:
        publish(write_repository(tmp_path / "old", tiny_vit, "a", before), "memory://published")
    new = write_repository(tmp_path / "new", tiny_vit, "a", after, larger_batches(SERVING, batches))
    store: RepositoryStore
    changes: list[str] = []
    ends_at = sys.maxsize

    def after_change(path: str) -> None:
        changes.append(path)
        check_what_a_server_sees(store)
        if len(changes) == ends_at:
            raise CutOff

    def start() -> str:
        nonlocal store, ends_at
        ends_at = sys.maxsize
        memory = MemoryFileSystem()
        if memory.exists("/served"):
            memory.rm("/served", recursive=True)
        if before:
            memory.copy("/published", "/served", recursive=True)
        store = RepositoryStore("memory://served")
        assert served(store, "a") == (([max(before)], sorted(before)) if before else ([], []))
        changes.clear()
        return store.url

    url = start()
    watch(after_change)
    publish(new, url)
    steps = list(changes)
    assert len(steps) > 5
    # Cut off after each config, and after some of the files before them.
    for cut in [1, 3, *(index for index, path in enumerate(steps, 1) if path.endswith("config.pbtxt"))]:
        url = start()
        ends_at = cut
        with pytest.raises(CutOff):
            publish(new, url)
        ends_at = sys.maxsize
        publish(new, url)
        assert served(store, "a") == ([max(after)], sorted(after))
        assert set(json.loads(store.read("manifest.json") or b"")["models"]["a"]) == set(map(str, after))


def test_it_waits_where_a_server_must_see_one_step_before_the_next(tmp_path: Path, tiny_vit: Arch) -> None:
    url = f"memory://{uuid.uuid4()}"
    store = RepositoryStore(url)
    seen: list[Any] = []

    def settle(seconds: float) -> None:
        seen.append((seconds, served(store, "a")))

    publish_repository(write_repository(tmp_path / "1", tiny_vit, "a", {1: 1}), url, settle_s=7, sleep=settle)
    assert seen == []  # nothing was served yet
    publish_repository(write_repository(tmp_path / "2", tiny_vit, "a", {2: 2}), url, settle_s=7, sleep=settle)
    assert seen == [(7, ([1], [1, 2])), (7, ([2], [1, 2]))]
    assert served(store, "a") == ([2], [2])


def test_other_names_stay(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    publish(write_repository(tmp_path / "a", tiny_vit, "a", {1: 1}), destination)
    both = write_repository(tmp_path / "b", tiny_vit, "b", {1: 1})
    write_repository(both, tiny_vit, "c", {1: 1})
    assert publish(both, destination, "b").sent == ("b:1",)
    store = RepositoryStore(destination)
    assert set(json.loads(store.read("manifest.json") or b"")["models"]) == {"a", "b"}
    assert not any(model.startswith("c-") for model in store.models())


def test_what_is_no_longer_served_is_named(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    publish(write_repository(tmp_path / "1", tiny_vit, "a", {1: 1}), destination)
    assert publish(write_repository(tmp_path / "2", tiny_vit, "a", {2: 2}), destination) == Publication(
        ("a:2",), ("a:1",)
    )


def test_a_served_version_is_never_replaced(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    publish(write_repository(tmp_path / "1", tiny_vit, "a", {1: 1}), destination)
    store = RepositoryStore(destination)
    before = {path: store.read(path) for path in store.files("")}
    with pytest.raises(RepositoryError, match=r"serves a version 1 of a-.* with other files.*MODEL_VERSION="):
        publish(write_repository(tmp_path / "2", tiny_vit, "a", {1: 99}), destination)
    assert {path: store.read(path) for path in store.files("")} == before


def test_a_repository_that_was_copied_by_hand_is_the_same_one(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    """Then what was published before has no SHA256SUMS."""
    source = write_repository(tmp_path / "1", tiny_vit, "a", {1: 1})
    publish(source, destination)
    store = RepositoryStore(destination)
    whole = {path: store.read(path) for path in store.files("")}
    sums = [path for path in whole if path.endswith(SUMS_NAME)]
    for path in sums:
        store.delete(path)
    assert publish(source, destination) == Publication((), ())
    assert {path: store.read(path) for path in store.files("")} == whole
    store.delete(sums[0])
    store.write(f"{sums[0].rpartition('/')[0]}/model.onnx", b"other")
    with pytest.raises(RepositoryError, match="with other files"):
        publish(source, destination)


def test_a_repository_that_was_served_here_is_the_same_one(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    """Python leaves its bytecode beside the models."""
    source = write_repository(tmp_path / "1", tiny_vit, "a", {1: 1})
    publish(source, destination)
    (source / "a-text-tokenize/1/__pycache__").mkdir()
    (source / "a-text-tokenize/1/__pycache__/model.pyc").write_bytes(b"bytecode")
    assert publish(source, destination) == Publication((), ())
    assert not any("__pycache__" in path for path in RepositoryStore(destination).files(""))


def test_a_version_that_is_not_served_is(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    """Left from a publication of another build that was cut off, with files that this one has not."""
    publish(write_repository(tmp_path / "1", tiny_vit, "a", {1: 1}), destination)
    store = RepositoryStore(destination)
    store.write("a-image-encoder/2/model.onnx", b"of another build")
    store.write("a-image-encoder/2/stray", b"")
    store.write(f"a-image-encoder/2/{SUMS_NAME}", b"of another build")
    publish(write_repository(tmp_path / "2", tiny_vit, "a", {1: 1, 2: 2}), destination)
    check_whole(store, "a-image-encoder", 2)
    assert not store.exists("a-image-encoder/2/stray")


def test_what_was_deleted_there_comes_back(tmp_path: Path, tiny_vit: Arch, destination: str) -> None:
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1})
    publish(source, destination)
    store = RepositoryStore(destination)
    before = store.files("")
    store.delete("a-text-encoder/1/model.onnx")
    assert publish(source, destination).sent == ("a:1",)
    assert store.files("") == before
    assert publish(source, destination).sent == ()


FULL = "No space left on device; free some space there"
READ_ONLY = "Read-only file system; have it mounted so that it can be written to here"


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, FULL), (errno.EROFS, READ_ONLY)])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, tiny_vit: Arch, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    source, target = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1}), tmp_path / "served"

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", refuse)
    with pytest.raises(RepositoryError) as raised:
        publish(source, str(target))
    assert str(raised.value) == f"{target}/a-image/1/.keep: {told}, and run it again"


def test_whoever_may_read_a_folder_may_read_what_is_published_there(tmp_path: Path, tiny_vit: Arch) -> None:
    """Under umask 077 a server of another user's could read no more configs, and called itself ready all the same."""
    source, target = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1}), tmp_path / "served"
    with umask_of(0o022):
        publish(source, str(target))
    with umask_of(0o077):
        publish(write_repository(source, tiny_vit, "a", {1: 1, 2: 2}), str(target))
        publish(source, str(tmp_path / "closed/served"))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*")}
    assert {path for path, mode in modes.items() if mode != (0o755 if path.is_dir() else 0o644)} == set()
    assert {path for path in (tmp_path / "closed").rglob("*") if path.stat().st_mode & 0o077} == set()


def test_a_name_keeps_its_shape(tmp_path: Path, tiny_vit: Arch, tiny_resnet: Arch, destination: str) -> None:
    publish(write_repository(tmp_path / "1", tiny_vit, "a", {1: 1}), destination)
    with pytest.raises(RepositoryError, match=r"serves a a-image with another arch.*under another name"):
        publish(write_repository(tmp_path / "2", tiny_resnet, "a", {2: 2}), destination)


def test_unknown_names_and_addresses(tmp_path: Path, tiny_vit: Arch) -> None:
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1})
    with pytest.raises(SettingError, match="holds no b, c: it has a"):
        publish(source, str(tmp_path / "served"), "b", "c")
    with pytest.raises(RepositoryError, match=r"nosuch://x can't be opened"):
        publish(source, "nosuch://x")
    with pytest.raises(MissingRequirementError, match=r"pip install 'cn-clip-triton\[publish\]'"):
        publish(source, "oci://x")
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="Not a directory; name a folder"):
        publish(source, str(tmp_path / "file/x"))


@pytest.mark.parametrize(
    "address", ["", " ", "/", "s3:", "s3://", "s3:/bucket/models", "S3:bucket", "file:///", "hf://"]
)
def test_no_folder_is_made_where_none_was_named(
    tmp_path: Path, tiny_vit: Arch, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """`make publish` without DESTINATION wrote all models into the checkout."""
    source = write_repository(tmp_path / "r", tiny_vit, "a", {1: 1})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RepositoryError, match=rf"'{address}' is no address: use a folder or s3://BUCKET/PREFIX"):
        publish(source, address)
    with pytest.raises(RepositoryError, match="is no address"):
        prune_repository(address)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_may_be_called_as_a_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("s3", "./s3:models", "models/s3", "C:"):
        RepositoryStore(folder).write("a", b"a")
        assert (tmp_path / folder / "a").read_bytes() == b"a"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command_text("cnclip-build", *arguments)


# The command, killed by SIGKILL when the second file of many has arrived.
KILLED = """
import os, signal
from cnclip_builder.cli.app import main
from cnclip_builder.repository.store import RepositoryStore
upload, arrived = RepositoryStore.upload, []
def killing(store, source, path):
    upload(store, source, path)
    arrived.extend([path] if path.startswith("a-image-encoder/2/") else [])
    if len(arrived) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
RepositoryStore.upload = killing
main()
"""


def test_to_s3_killed_and_run_again(tmp_path: Path, tiny_vit: Arch, bucket: str) -> None:
    url = f"s3://{bucket}/models"
    publish(write_repository(tmp_path / "1", tiny_vit, "a", {1: 1}), url)
    source = write_repository(tmp_path / "2", tiny_vit, "a", {1: 1, 2: 2})
    large = source / "a-text-encoder/2/model.onnx"
    large.write_bytes(os.urandom(12 << 20))  # sent in parts
    store = RepositoryStore(url)

    killed = run_script(KILLED, "publish", url, "--repository", str(source), name="cnclip-build")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(store.files("a-image-encoder/2")) == 2
    check_what_a_server_sees(store)
    assert served(store, "a") == ([1], [1])

    result = run("publish", url, "--repository", str(source), "--settle", "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "sent     a:2"
    check_what_a_server_sees(store)
    assert served(store, "a") == ([2], [1, 2])
    assert (
        hashlib.sha256(store.read("a-text-encoder/2/model.onnx") or b"").digest()
        == hashlib.sha256(large.read_bytes()).digest()
    )

    result = run("prune", url, "--keep", "1", "--settle", "0")
    assert result.returncode == 0, result.stderr
    assert "deleted  a-image-encoder  1" in result.stdout
    check_what_a_server_sees(store)
    assert store.files("a-image-encoder/1") == []


def test_an_s3_that_refuses(tmp_path: Path, tiny_vit: Arch, bucket: str) -> None:
    source = write_repository(tmp_path / "1", tiny_vit, "a", {1: 1})
    result = run("publish", "s3://no-such-bucket/x", "--repository", str(source))
    assert result.returncode == 1
    assert result.stderr.startswith("error: s3://no-such-bucket/x/")
    assert "Traceback" not in result.stderr


def test_make_publish(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "--always-make", "publish", "REPOSITORY=r", "DESTINATION=s3://b/m", "NAME=n"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'cnclip-build publish "s3://b/m" --repository "r" --name "n"' in recipe
