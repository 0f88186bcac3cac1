"""Settings: what is asked for, what a repository's owner chose before, and what follows for each encoder."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, Arch
from cnclip_builder.build import BuildRequest
from cnclip_builder.cli.app import app
from cnclip_builder.errors import RepositoryError, SettingError
from cnclip_builder.repository.choosing import choose_settings
from cnclip_builder.repository.manifest import kept_serving, load_manifest, update_serving, write_manifest
from cnclip_builder.repository.serving import SETTINGS, EncoderSettings, ServingConfig
from cnclip_builder.repository.settings import PER_TOWER, parse_gpus, parse_per_tower
from typer.testing import CliRunner

CPU = ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=32)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_builder.repository.serving.has_gpu", lambda: False)


def choose(chosen: dict[str, Any], kept: dict[str, Any]) -> tuple[ServingConfig, tuple[str, ...]]:
    return choose_settings(chosen, kept, DEFAULT_CONTEXT_LENGTH)


def test_the_defaults_of_a_new_model() -> None:
    assert choose({}, {}) == (CPU, ())
    assert choose({"target": "gpu"}, {})[0] == ServingConfig(
        "gpu", "fp16", 52, {"image": 64, "text": 128}, accelerator="cuda"
    )
    plans = choose({"platform": "tensorrt"}, {})[0]
    assert (plans.target, plans.max_batch_size, plans.accelerator) == ("gpu", 64, "none")


def test_what_was_chosen_is_kept_and_told() -> None:
    kept = choose({"encoder_instances": {"image": 2}, "preprocess_threads": 3, "precision": "int8"}, {})[0].as_dict()
    again, told = choose({}, kept)
    assert again.as_dict() == kept
    assert told == ("precision", "encoder_instances", "preprocess_threads")
    assert again.encoder("image").instances == 2
    assert again.encoder("text").instances == 1


def test_an_option_counts_more_and_leaves_the_other_encoder() -> None:
    kept = choose({"encoder_instances": 2}, {})[0].as_dict()
    again, told = choose({"encoder_instances": {"text": 4}}, kept)
    assert (again.encoder("image").instances, again.encoder("text").instances) == (2, 4)
    assert told == ()
    assert choose({"encoder_instances": 1}, kept)[0].encoder("text").instances == 1


def test_another_target_begins_anew_but_for_what_does_not_rest_on_it() -> None:
    kept = choose({"encoder_threads": 1, "max_image_pixels": 10, "max_batch_size": 8}, {})[0].as_dict()
    gpu, told = choose({"target": "gpu"}, kept)
    assert (gpu.precision, gpu.encoder("text").threads, gpu.encoder("text").max_batch_size) == ("fp16", 0, 128)
    assert (gpu.max_image_pixels, told) == (10, ("max_image_pixels",))
    assert choose({}, gpu.as_dict())[0] == gpu  # also on a machine without a GPU: the repository is for one


def test_a_manifest_with_settings_that_are_not_known_is_refused() -> None:
    with pytest.raises(
        SettingError, match="in manifest.json: .* 'from_the_future': .*; --no-keep-settings begins anew"
    ):
        choose({}, {**CPU.as_dict(), "from_the_future": 1})


def test_the_settings_of_an_encoder_are_those_typed_so() -> None:
    assert {field.name for field in fields(ServingConfig) if "PerTower" in str(field.type)} == PER_TOWER


@pytest.mark.parametrize("name", sorted(PER_TOWER))
def test_every_setting_of_an_encoder_is_its_own(name: str) -> None:
    changed = choose({name: {"text": 7}}, {})[0]
    assert changed.encoder("image") == CPU.encoder("image")
    differing = {
        field
        for field in EncoderSettings.__dataclass_fields__
        if getattr(changed.encoder("text"), field) != getattr(CPU.encoder("text"), field)
    }
    # No more is preferred than a batch may hold.
    also = {"preferred_batch_size"} if name == "max_batch_size" else set()
    assert differing == {name.removeprefix("encoder_")} | also


def test_what_was_chosen_for_larger_batches_is_lowered_with_them() -> None:
    before = choose({"max_batch_size": 64, "preferred_batch_size": 48, "merged_batch_size": {"text": 64}}, {})[0]
    now, _ = choose({"max_batch_size": {"image": 16}}, before.as_dict())
    assert now.preferred_batch_size == {"image": 16, "text": 48}
    assert (now.encoder("image").preferred_batch_size, now.encoder("text").preferred_batch_size) == (16, 48)
    assert now.merged_batch_size == {"text": 64}
    with pytest.raises(SettingError, match="preferred_batch_size is 48, and the image"):
        choose({"max_batch_size": {"image": 16}, "preferred_batch_size": 48}, before.as_dict())


def test_numbers_of_gpus() -> None:
    assert parse_gpus("0,2") == (0, 2)
    for text in ("", "a", "-1", "0,", "0 1", "０"):
        with pytest.raises(
            SettingError, match=r"gpus is .*: write numbers of GPUs with commas between them, such as 0,2"
        ):
            parse_gpus(text)


def test_per_tower_numbers() -> None:
    assert parse_per_tower("x", "3") == 3
    assert parse_per_tower("x", "text=3,image=2") == {"image": 2, "text": 3}
    for text in ("", "a", "-1", "image", "image=", "image=x", "picture=2", "image=1,image=2", "１"):
        with pytest.raises(SettingError, match=r"x is .*: write a number, or image=N,text=N for one of each encoder"):
            parse_per_tower("x", text)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"encoder_instance": 2}, "there is no setting 'encoder_instance': the settings are target, precision"),
        ({"encoder_instances": 0}, "encoder_instances is 0: choose at least 1"),
        ({"encoder_instances": 2**31}, "encoder_instances is 2147483648: choose at most 2147483647"),
        ({"encoder_instances": {"image": 0}}, "encoder_instances is 0: choose at least 1"),
        ({"encoder_instances": {"picture": 1}}, "encoder_instances is {'picture': 1}: give a whole number or"),
        ({"encoder_instances": "2"}, "encoder_instances is '2': give a whole number or"),
        ({"preprocess_instances": {"image": 1}}, "preprocess_instances is {'image': 1}: give a whole number$"),
        (
            {"target": "gpu", "gpus": ()},
            "gpus is '': name each GPU once, such as 0,2, with TARGET=gpu; or leave it out",
        ),
        ({"target": "gpu", "gpus": (1, 1)}, "gpus is '1,1': name each GPU once"),
        ({"target": "cpu", "gpus": (0,)}, "gpus is '0': name each GPU once, such as 0,2, with TARGET=gpu"),
        ({"target": "gpu", "gpus": (-1,)}, "gpus is -1: choose at least 0"),
        ({"target": "gpu", "gpus": "0"}, "gpus is '0': give a whole number"),
        ({"max_queue_size": None}, "max_queue_size is None: give a whole number$"),
        ({"precision": "bf16"}, "precision is 'bf16': choose one of fp32, fp16, int8"),
        ({"reduced_decoding": "yes"}, "reduced_decoding is 'yes': choose one of false, true"),
        ({"image_formats": "MPEG;rm"}, "image_formats is 'MPEG;rm': write Pillow's names of formats"),
        ({"image_formats": "MPEG,EPS"}, "image_formats is 'MPEG,EPS': .* EPS are not decoded, .*: name some of .*WMF$"),
        ({"image_formats": "HEIC"}, "image_formats is 'HEIC': this Pillow has no format HEIC: name some of .*WMF$"),
        ({"preferred_batch_size": 64}, "preferred_batch_size is 64, and the image encoder's max_batch_size 32: choose"),
        (
            {"merged_batch_size": {"text": 9}, "max_batch_size": {"text": 8}},
            "merged_batch_size is 9, and the text encoder's max_batch_size 8: choose at most that, or larger batches",
        ),
        ({"image_formats": None}, "image_formats is None: write Pillow's names of formats"),
        ({"target": "tpu"}, "target is 'tpu': choose one of cpu, gpu"),
        ({"preprocess": "card"}, "preprocess is 'card': choose one of exact, gpu"),
        ({"target": "cpu", "preprocess": "gpu"}, "only GPUs that serve encoders decode images: choose TARGET=gpu"),
        (
            {"target": "gpu", "preprocess": "gpu", "reduced_decoding": True},
            "a GPU decodes JPEGs at their full size: leave --reduced-decoding out",
        ),
        (
            {"target": "gpu", "preprocess": "gpu", "encoders_only": True},
            "encoders alone decode nothing, their clients do: leave PREPROCESS=gpu out",
        ),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        choose(settings, {})


@pytest.fixture
def repository(tmp_path: Path, tiny_vit: Arch) -> Path:
    folder = tmp_path / "repository"
    (folder / "mine-text-encoder").mkdir(parents=True)
    records = {number: {"arch": "ViT-B-16", "serving": CPU.as_dict()} for number in ("1", "9", "10")}
    records["10"] = {"arch": "ViT-B-16", "serving": {**CPU.as_dict(), "preprocess_instances": 10}}
    write_manifest(folder, {"mine": records})
    return folder


def test_the_newest_version_speaks_for_a_new_one(repository: Path) -> None:
    assert kept_serving(repository, "mine", 9, "ViT-B-16") == CPU.as_dict()
    assert kept_serving(repository, "mine", 11, "ViT-B-16")["preprocess_instances"] == 10
    assert kept_serving(repository, "mine", 1, "RN50") == {}
    assert kept_serving(repository, "other", 1, "ViT-B-16") == {}


def test_what_is_found_by_tuning_is_written_into_all_versions(repository: Path) -> None:
    update_serving(repository, "mine", {"encoder_instances": {"text": 2}, "tokenize_instances": 3})
    for record in load_manifest(repository).models["mine"].values():
        assert record["serving"]["encoder_instances"] == {"image": 1, "text": 2}
        assert record["serving"]["tokenize_instances"] == 3
    with pytest.raises(RepositoryError, match=r"manifest\.json tells of no model other"):
        update_serving(repository, "other", {})


def built_with(monkeypatch: pytest.MonkeyPatch, repository: Path, *options: str) -> tuple[ServingConfig, str]:
    """Runs the command up to the build itself."""
    requests: list[BuildRequest] = []

    class Built(Exception):
        """Ends the command there."""

    def build(request: BuildRequest) -> None:
        requests.append(request)
        raise Built

    monkeypatch.setattr("cnclip_builder.build.build_repository", build)
    command = ["repository", "--arch", "ViT-B-16", "--name", "mine", "--repository", str(repository)]
    result = CliRunner().invoke(app, [*command, *options])
    assert isinstance(result.exception, Built), result.output
    return requests[0].serving, result.stderr


def test_every_setting_has_an_option(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    options = {name: f"--{name.replace('_', '-').removesuffix('-microseconds')}" for name in SETTINGS}
    values = {"target": "gpu", "precision": "fp16", "platform": "tensorrt", "accelerator": "none"}
    values |= {"image_formats": "MPEG", "preprocess": "gpu"}
    flags = {"cuda_graphs", "pinned_memory", "tf32", "reduced_decoding", "encoders_only"}
    given = [
        word
        for name, option in options.items()
        for word in ([option.replace("--", "--no-", 1)] if name in flags else [option, values.get(name, "5")])
    ]
    serving, told = built_with(monkeypatch, repository, *given)
    assert told == ""
    for name in SETTINGS:
        expected = (5,) if name in ("text_lengths", "gpus") else values.get(name, 5)
        assert getattr(serving, name) == (False if name in flags else expected)


def test_the_command_keeps_what_is_there_and_says_so(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    serving, told = built_with(monkeypatch, repository, "--model-version", "10", "--encoder-threads", "image=2")
    assert serving.preprocess_instances == 10
    assert (serving.encoder("image").threads, serving.encoder("text").threads) == (2, 0)
    assert told == (f"Keeping the settings of {repository}: preprocess_instances 10 (--no-keep-settings begins anew)\n")
    assert built_with(monkeypatch, repository, "--no-keep-settings") == (CPU, "")


def test_a_file_of_settings(monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"encoder_instances": {"image": 3}, "tokenize_instances": 4}))
    serving, _ = built_with(monkeypatch, repository, "--settings", str(file), "--tokenize-instances", "2")
    assert (serving.encoder("image").instances, serving.tokenize_instances) == (3, 2)
    for text, complaint in (("[1]", "holds no settings by name"), ("{", "is no JSON")):
        file.write_text(text)
        result = CliRunner().invoke(app, ["repository", "--arch", "ViT-B-16", "--settings", str(file)])
        assert isinstance(result.exception, SettingError)
        assert complaint in str(result.exception)


@pytest.mark.parametrize(("cores", "processes"), [(1, 4), (16, 4), (32, 8), (256, 16)])
def test_processes_that_decode_follow_the_cores_before_gpus(
    cores: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnclip_builder.repository.serving.usable_cores", lambda: cores)
    gpu = ServingConfig(target="gpu", precision="fp16", context_length=52, max_batch_size=64)
    assert gpu.preprocess_processes == processes
    assert replace(gpu, preprocess_instances=3).preprocess_processes == 3
    assert replace(CPU, preprocess_instances=None).preprocess_processes == 1
