"""Every file that the builder reads, cut at every eighth and with bytes turned: one line that names it, or what it held.

Checkpoints are in checkpoint/test_soundness.py, vocabularies in test_vocabulary.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.artefacts.store import ArtefactStore
from cnclip_builder.checkpoint.load import expected_shapes
from cnclip_builder.cli.repository import _read_settings
from cnclip_builder.cli.verify import _read_captions
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.here import PlanSettings, write_jobs_of
from cnclip_builder.plans.make import make_plan, require_usable
from cnclip_builder.plans.record import PlanJob, read_jobs, read_record, sidecar_of, write_jobs
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.manifest import kept_serving, load_manifest, update_serving
from cnclip_builder.repository.publishing import publish_repository
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.sharing import check_one_tensorrt, check_place
from cnclip_builder.repository.write import add_version

from tests.builder.damaged import complaint_of, cut, require_one_line_about, turned
from tests.builder.plans.tensorrt_stand_in import A10, StandIn
from tests.conftest import TINY_VIT

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)


def go_through(
    path: Path,
    read: Callable[[], Any],
    least_cut: int = 8,
    least_turned: int = 1,
    times: int = 150,
    named: Path | None = None,
) -> None:
    """Breaks a file in every way and reads it.

    Args:
        path: the file; it is whole again afterwards.
        read: reads it.
        least_cut: how many of the eight cuts must be told.
        least_turned: how many of the turned bytes must be told: text has no checksum, so most are another text.
        times: how many bytes are turned.
        named: the file that must be named; this one if None.
    """
    whole = path.read_bytes()
    assert complaint_of(read) is None
    told = []
    for contents in (list(cut(whole)), list(turned(whole, 20, times=times))):
        told.append(0)
        for content in contents:
            path.write_bytes(content)
            complaint = complaint_of(read)
            if complaint is not None:
                told[-1] += 1
                require_one_line_about(named or path, complaint)
    path.write_bytes(whole)
    assert told[0] >= least_cut
    assert told[1] >= least_turned


@pytest.fixture(scope="module")
def jobs(tiny_artefacts: Artefacts) -> dict[str, PlanJob]:
    return write_jobs_of(tiny_artefacts, ["text"], "fp16", "served", PlanSettings(8, 52))  # type: ignore[return-value]


def test_plans_and_their_sidecars(tiny_artefacts: Artefacts, jobs: dict[str, PlanJob], tmp_path: Path) -> None:
    job, sources = jobs["text"], tiny_artefacts.items[0].folder
    make_plan(job, sources, tmp_path, StandIn(), A10, BuildOptions())  # type: ignore[arg-type]
    plan = tmp_path / job.plan
    go_through(plan, lambda: require_usable(plan, job), least_turned=50, times=50)
    go_through(sidecar_of(plan), lambda: require_usable(plan, job), named=plan)  # it is the plan that can't be used
    go_through(sidecar_of(plan), lambda: read_record(plan))


def test_lists_of_plans(jobs: dict[str, PlanJob], tmp_path: Path) -> None:
    write_jobs(tmp_path, tuple(jobs.values()))
    go_through(tmp_path / "plans.json", lambda: read_jobs(tmp_path))


@pytest.mark.parametrize("content", ["[]", "null", '"x"', '{"jobs": 3}', '{"jobs": [3]}', '{"jobs": {"a": 1}}'])
def test_lists_of_plans_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "plans.json").write_text(content)
    require_one_line_about(tmp_path / "plans.json", complaint_of(lambda: read_jobs(tmp_path)) or "")


@pytest.mark.parametrize("content", ["[]", "null", '"x"', '{"schema": 2}', '{"schema": 2, "input": 3, "parity": []}'])
def test_sidecars_that_are_none(tmp_path: Path, content: str) -> None:
    (plan := tmp_path / "a.trt").touch()
    sidecar_of(plan).write_text(content)
    require_one_line_about(sidecar_of(plan), complaint_of(lambda: read_record(plan)) or "")


def test_artefacts_that_are_broken_are_made_again(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    """Whatever is broken of one, it is found not to be sound; and the whole one is."""
    made = tiny_artefacts.get("text", "fp16")
    folder = shutil.copytree(made.folder, tmp_path / "a")
    store = ArtefactStore(tiny_vit, folder, tiny_artefacts.checkpoint.sha256)
    sound = store.find_sound("text", "fp16")
    assert sound is not None
    for name in (made.name, made.weights.name):
        whole = (folder / name).read_bytes()
        for content in [*cut(whole), *turned(whole, 20)]:
            (folder / name).write_bytes(content)
            assert store.find_sound("text", "fp16") is None
        (folder / name).write_bytes(whole)
    sidecar = folder / made.sidecar.name
    for content in [*cut(sidecar.read_bytes()), *turned(made.sidecar.read_bytes(), 20, times=150)]:
        sidecar.write_bytes(content)
        record = store.find_sound("text", "fp16")
        assert record is None or record.files == sound.files


def test_a_turned_byte_in_the_weights_is_not_built_from(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path
) -> None:
    made = tiny_artefacts.get("image", "fp32")
    folder = shutil.copytree(made.folder, tmp_path / "a")
    weights = folder / made.weights.name
    whole = weights.read_bytes()
    weights.write_bytes(next(turned(whole, 20)))
    again = build_artefacts(
        tiny_vit, "random:0", folder, towers=["image"], precisions=["fp32"], download_root=made.folder.parent.parent
    )
    assert not again.get("image", "fp32").reused
    assert weights.read_bytes() == whole


def test_manifests(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    go_through(repository / "manifest.json", lambda: load_manifest(repository))

    def read() -> None:
        check_place("a", 2, tiny_vit, SERVING, repository)
        kept_serving(repository, "a", 2, tiny_vit.name)
        check_one_tensorrt(load_manifest(repository).models)
        if "a" in load_manifest(repository).models:
            update_serving(repository, "a", {"encoder_instances": {"image": 2}})

    # Of another architecture or name, so the message is about that.
    whole = (repository / "manifest.json").read_bytes()
    for content in [*cut(whole), *turned(whole, 21, times=150)]:
        (repository / "manifest.json").write_bytes(content)
        complaint_of(read)


@pytest.mark.parametrize("content", ["[]", "null", '{"schema": 1}', '{"schema": 1, "models": 3}',
                                     '{"schema": 1, "models": {"a": [1]}}', '{"schema": 1, "models": {"a": {"x": {}}}}',
                                     '{"schema": 1, "models": {"a": {"1": 3}}}', '{"schema": 1, "models": {}, "files": [1]}',
                                     '{"schema": 1, "models": {"tiny": {"1": {}}}}', "[" * 100_000])  # fmt: skip
def test_manifests_that_are_none(tmp_path: Path, tiny_vit: Arch, content: str) -> None:
    (tmp_path / "tiny-text-encoder").mkdir()
    (tmp_path / "manifest.json").write_text(content)
    complaint = complaint_of(lambda: check_place("tiny", 2, tiny_vit, SERVING, tmp_path))
    require_one_line_about(tmp_path / "manifest.json", complaint or "")


def test_configs(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    for kind in ("image", "text-encoder", "text-tokenize"):
        path = repository / f"a-{kind}" / "config.pbtxt"
        whole = path.read_bytes()
        for content in [*cut(whole), *turned(whole, 20, times=100)]:
            path.write_bytes(content)
            # It is checked first, and what still parses is told by its hash before it is sent anywhere.
            complaint = complaint_of(lambda: publish_repository(repository, str(tmp_path / "sent")))
            assert complaint is not None
            assert "\n" not in complaint
            assert path.parent.name in complaint
        path.write_bytes(whole)
    assert not (tmp_path / "sent").exists()


def test_a_change_that_was_meant_is_published(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("a", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    config = repository / "a-image-preprocess" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 3"))
    with pytest.raises(
        Exception, match=r"a-image-preprocess/config\.pbtxt is not what .*manifest\.json says: .*--changed"
    ):
        publish_repository(repository, str(tmp_path / "sent"))
    publish_repository(repository, str(tmp_path / "sent"), changed=True)
    assert "count: 3" in (tmp_path / "sent" / "a-image-preprocess" / "config.pbtxt").read_text()


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**SERVING.as_dict(), "encoder_instances": {"image": 2, "text": 1}}))
    go_through(path, lambda: _read_settings(path), least_turned=30)


@pytest.mark.parametrize(
    "content",
    ['{"encoder_instance": 2}', '{"encoder_instances": 0}', '{"tf32": 3}', "[1]", "{", "[" * 100_000, "\udcff"],
)
def test_settings_that_are_none(tmp_path: Path, content: str) -> None:
    (path := tmp_path / "settings.json").write_text(content, errors="surrogateescape")
    require_one_line_about(path, complaint_of(lambda: _read_settings(path)) or "")


def test_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("一只黑猫趴在窗台上\n夜晚的城市\n" * 20, encoding="utf-8")
    go_through(path, lambda: _read_captions(path), least_cut=4, least_turned=30)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "holds no texts"), ("黑猫".encode("gb18030"), r"is not in UTF-8 \(.* at byte 0\): save it in UTF-8")],
)
def test_captions_that_are_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    (path := tmp_path / "captions.txt").write_bytes(content)
    with pytest.raises(Exception, match=complaint):
        _read_captions(path)


def test_captions_begin_after_a_byte_order_mark_and_end_with_their_line(tmp_path: Path) -> None:
    (path := tmp_path / "captions.txt").write_bytes("\ufeff黑猫\u2028白猫\r\n\r\n夜晚\r\n".encode())
    assert _read_captions(path) == ["黑猫\u2028白猫", "", "夜晚"]


def test_descriptions_of_archs(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY_VIT, indent=1))

    def read() -> None:
        arch = get_arch(str(path))
        if max(value for value in arch.model_info.values() if isinstance(value, int)) < 100_000:
            expected_shapes(arch)

    go_through(path, read, least_turned=50)


@pytest.mark.parametrize(
    "change",
    [{"embed_dim": "48"}, {"embed_dim": None}, {"vision_layers": [1, 2]}, {"vision_layers": [1, 1, 1, "1"]}, {"vocab_size": -1},
     {"text_hidden_act": "gelo"}, {"text_num_attention_heads": 5}, {"vision_patch_size": 64}, {"text_hidden_size": 33},
     {"image_resolution": 1e9}, {"text_initializer_range": "x"}],
)  # fmt: skip
def test_sizes_of_no_model(tmp_path: Path, change: dict[str, Any]) -> None:
    (path := tmp_path / "tiny.json").write_text(json.dumps({**TINY_VIT, **change}))
    complaint = complaint_of(lambda: expected_shapes(get_arch(str(path))))
    if change != {"vision_patch_size": 64}:  # a picture of no patch: cn_clip makes such a model
        require_one_line_about(path, complaint or "")
