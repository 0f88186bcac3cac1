"""Repositories small enough to publish hundreds of times, and what a server that polls one may never see."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.repository.manifest import load_manifest, write_manifest
from cnclip_builder.repository.publishing import SUMS_NAME
from cnclip_builder.repository.render import parse_config, render_config
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.repository.values import ENCODERS, KINDS, template_values

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)


def write_repository(
    folder: Path, arch: Arch, name: str, contents: Mapping[int, int], serving: ServingConfig = SERVING
) -> Path:
    """Writes what the builder would: the real configs, and files of made-up content.

    Args:
        folder: the repository; what it has of other names stays.
        arch: the architecture.
        name: of the models.
        contents: by version number, a seed of the files' content. The ensembles serve the newest.
        serving: how it is served.
    """
    for kind in KINDS:
        model = folder / f"{name}-{kind}"
        shutil.rmtree(model, ignore_errors=True)
        newest = max(contents)
        if serving.encoders_only and kind not in ENCODERS:
            continue
        for version, seed in contents.items():
            if kind in ("image", "text"):
                if version == newest:
                    (model / str(version)).mkdir(parents=True)
                    (model / str(version) / ".keep").touch()
                continue
            (model / str(version)).mkdir(parents=True)
            for file in ("model.onnx", "model.onnx.extra_file"):
                content = random.Random(f"{name} {kind} {seed} {file}").randbytes(2000)
                (model / str(version) / file).write_bytes(content)
            (model / "warmup").mkdir(exist_ok=True)
            (model / "warmup" / "input").write_bytes(b"warm")
        facts = {"arch": arch.name, "checkpoint_sha256": str(contents[newest]), "context_length": 40}
        values = template_values(kind, f"{name}-{kind}", arch, serving, sorted(contents), newest, facts)
        (model / "config.pbtxt").write_text(render_config(kind, values)[0], encoding="utf-8")
    record = {"built": "x", "serving": serving.as_dict(), "plans": {}}
    write_manifest(folder, _manifest(folder) | {name: dict.fromkeys(map(str, contents), record)})
    return folder


def _manifest(folder: Path) -> dict[str, Any]:
    return load_manifest(folder).models if (folder / "manifest.json").exists() else {}


def larger_batches(serving: ServingConfig, size: int) -> ServingConfig:
    return replace(serving, max_batch_size=size)


def check_what_a_server_sees(store: RepositoryStore) -> None:
    """What a server that polls at this very moment could load must work."""
    configs = {model: parsed(store.read(f"{model}/config.pbtxt") or b"") for model in store.models()}
    for model, config in configs.items():
        served = list(config.version_policy.specific.versions)
        assert served, model
        for version in served:
            check_whole(store, model, version)
        for step in config.ensemble_scheduling.step:
            assert step.model_name in configs, f"{model} needs {step.model_name}"
            steps = configs[step.model_name]
            assert step.model_version in steps.version_policy.specific.versions, f"{model} needs {step.model_version}"
            assert config.max_batch_size <= steps.max_batch_size


@cache
def parsed(text: str | bytes) -> Any:
    """What a config says, which nobody may change: the same few are read again and again, and each takes milliseconds."""
    return parse_config(text, "config.pbtxt")


def check_whole(store: RepositoryStore, model: str, version: int) -> None:
    sums = store.read(f"{model}/{version}/{SUMS_NAME}")
    assert sums is not None, f"{model} {version} is not whole"
    files = {path: store.read(path) for path in store.files(f"{model}/{version}") if not path.endswith(SUMS_NAME)}
    lines = [f"{hashlib.sha256(files[path] or b'').hexdigest()}  {Path(path).name}" for path in sorted(files)]
    assert sums.decode().splitlines() == lines


def served(store: RepositoryStore, name: str) -> tuple[Sequence[int], Sequence[int]]:
    """The versions of an ensemble, and of its encoder."""
    return sorted(store.served_versions(f"{name}-image")), sorted(store.served_versions(f"{name}-image-encoder"))
