"""What a build would make, reuse or refuse: found out by the same code, and nothing is made, fetched or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cnclip_builder.artefacts.maker import ArtefactPlan, Artefacts, plan_artefacts
from cnclip_builder.build import (
    BuildRequest,
    check_request,
    check_space,
    plan_settings_of,
    precisions_of,
)
from cnclip_builder.checkpoint.sources import CheckpointFile
from cnclip_builder.checkpoint.stage import CheckpointFacts, open_checkpoint_here
from cnclip_builder.plans.here import Plan, look_for_plans
from cnclip_builder.repository.encoders import find_kept
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.manifest import Manifest
from cnclip_builder.repository.store import CONFIG_NAME
from cnclip_builder.repository.values import KINDS, TOWER_OF, kinds_of
from cnclip_builder.repository.write import check_neighbours, check_repository, render_configs
from cnclip_builder.system.atomic import require_room
from cnclip_builder.system.isolation import stage_process
from cnclip_builder.tensors import TOWERS, Precision, Tower

Action = Literal["read", "fetched", "made", "reused", "rewritten", "unchanged", "deleted", "decided when measured"]
"""What becomes of a file or a model: `made` is new, and `rewritten` takes the place of one that is there."""

UNKNOWN = "not known before the checkpoint is here"
"""What stands in a config for what the checkpoint tells."""


@dataclass(frozen=True)
class Preview:
    """What a build would do.

    Attributes:
        name: of the models.
        version: theirs.
        serving: all settings.
        checkpoint: where it comes from, what becomes of it, and its SHA-256 if it is here.
        artefacts: what becomes of each ONNX file.
        plans: what becomes of each TensorRT plan; empty where none is served.
        models: what becomes of this version of each served model.
        configs: the text of each model's `config.pbtxt`, and what becomes of the file. Encoders' are left out where
            they name plans that are yet to be built here.
        notes: what a build would find out by making it.
    """

    name: str
    version: int
    serving: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    artefacts: Mapping[str, Action]
    plans: Mapping[str, Action]
    models: Mapping[str, Action]
    configs: Mapping[str, tuple[Action, str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        configs = {name: {"action": action, "text": text} for name, (action, text) in self.configs.items()}
        return {**asdict(self), "configs": configs, "notes": list(self.notes)}


def preview_build(request: BuildRequest) -> Preview:
    """Goes the way of `build_repository` as far as it can be gone without making anything.

    Raises:
        BuildError: as `build_repository`, in the same words, where that would be refused before it is measured.
    """
    name = check_request(request)
    require_room(request.repository)
    folder = request.artefacts / name
    require_room(folder)
    with stage_process() as process:
        facts = process.run(open_checkpoint_here, request.checkpoint, request.arch, request.download_root)
    plan = plan_artefacts(request.arch, facts, folder, TOWERS, precisions_of(request), request.least_int8_speed_up)
    if facts:
        check_space(request, name, facts, plan)
    plans = _plans(request)
    checkpoint = facts or _unknown_checkpoint(request)
    artefacts = Artefacts(checkpoint, tuple(plan.store.get(*kind, reused=True) for kind in plan.kept))
    entry = RepositoryEntry(name, request.version, request.arch, artefacts, request.serving, plans)
    before = check_neighbours(entry, request.repository)
    configs = _configs(request, entry, plan, before)
    return Preview(
        name=name,
        version=request.version,
        serving=request.serving.as_dict(),
        checkpoint=_checkpoint(request, facts),
        artefacts={plan.store.place(*kind).name: _of_artefact(plan, kind) for kind in plan.wanted},
        plans=_of_plans(request, plans),
        models=_of_models(request, entry, plan, before),
        configs=configs,
        notes=_notes(request, facts, plan, before.models.get(name, {}).get(str(request.version))),
    )


def _unknown_checkpoint(request: BuildRequest) -> CheckpointFacts:
    source = request.checkpoint or "official"
    return CheckpointFacts(CheckpointFile(Path(), source), UNKNOWN, float("nan"), {"image": 0, "text": 0})


def _checkpoint(request: BuildRequest, facts: CheckpointFacts | None) -> dict[str, Any]:
    if facts is not None:
        return {"source": facts.file.source, "action": "read", "path": str(facts.file.path), "sha256": facts.sha256}
    source = request.checkpoint or "official"
    return {"source": source, "action": "made" if source.startswith("random:") else "fetched"}


def _plans(request: BuildRequest) -> Mapping[Tower, Sequence[Plan]]:
    """The plans that were made elsewhere; of others nothing is known yet."""
    serving = request.serving
    if serving.platform != "tensorrt" or not request.plan_folders:
        return {}
    settings, folders = plan_settings_of(request), request.plan_folders
    return look_for_plans(request.arch, TOWERS, serving.precision, settings, folders, tf32=serving.tf32)


def _of_plans(request: BuildRequest, plans: Mapping[Tower, Sequence[Plan]]) -> dict[str, Action]:
    if request.serving.platform == "tensorrt" and not plans:
        return {f"{tower} plan": "made" for tower in TOWERS}
    return {str(plan.path): "reused" for of_tower in plans.values() for plan in of_tower}


def _of_artefact(plan: ArtefactPlan, kind: tuple[Tower, Precision]) -> Action:
    if kind in plan.kept:
        return "reused"
    return "decided when measured" if kind[1] == "int8" else "made"


def _of_models(
    request: BuildRequest, entry: RepositoryEntry, plan: ArtefactPlan, before: Manifest
) -> dict[str, Action]:
    models: dict[str, Action] = {}
    for kind in KINDS:
        name = f"{entry.name}-{kind}"
        if kind in kinds_of(entry.serving.encoders_only):
            models[name] = _of_model(request, entry, kind, plan, before)
        elif (request.repository / name).exists():
            models[name] = "deleted"
    return models


def _of_model(request: BuildRequest, entry: RepositoryEntry, kind: str, plan: ArtefactPlan, before: Manifest) -> Action:
    tower = TOWER_OF[kind]
    if kind.endswith("-encoder") and request.serving.platform == "onnxruntime":
        if (tower, "int8") in plan.missing:
            return "decided when measured"
        is_kept = (tower, entry.precision_of(tower)) in plan.kept
        if is_kept and find_kept(entry, tower, request.repository, before) is not None:
            return "reused"
    return "rewritten" if str(entry.version) in before.models.get(entry.name, {}) else "made"


def _configs(
    request: BuildRequest, entry: RepositoryEntry, plan: ArtefactPlan, before: Manifest
) -> dict[str, tuple[Action, str]]:
    """Renders the configs, checks them with those that stay, and tells what becomes of each."""
    if request.serving.platform == "tensorrt" and not entry.plans:
        return {}
    texts = render_configs(entry, before)
    check_repository(request.repository, texts)
    found: dict[str, tuple[Action, str]] = {}
    # They say in which precision an encoder is served.
    undecided = {f"{entry.name}-{tower}{of}" for tower, one in plan.missing if one == "int8" for of in ("", "-encoder")}
    for name, text in texts.items():
        path = request.repository / name / CONFIG_NAME
        there = path.read_text(encoding="utf-8") if path.is_file() else None
        action: Action = "made" if there is None else "unchanged" if there == text else "rewritten"
        found[name] = ("decided when measured" if name in undecided else action, text)
    return found


def _notes(
    request: BuildRequest, facts: CheckpointFacts | None, plan: ArtefactPlan, there: Mapping[str, Any] | None
) -> tuple[str, ...]:
    serving, notes = request.serving, []
    if facts is not None and there is not None and there["checkpoint"]["sha256"] != facts.sha256:
        digest = str(there["checkpoint"]["sha256"])[:12]
        notes.append(f"version {request.version} is of another checkpoint, sha256 {digest}: it is replaced")
    if facts is None:
        notes.append("the checkpoint is not here: whether it can be used is seen when it is")
    elif facts.file.is_random:
        notes.append("the weights are untrained: for load tests only")
    if any(precision == "int8" for _, precision in plan.missing):
        notes.append(
            f"INT8 is served where it reaches {request.least_int8_speed_up:g} times FP32's speed here and holds its "
            "tolerance, and FP32 elsewhere: decided when measured; if neither encoder does, the build is refused"
        )
    if plan.missing or facts is None:
        spared = "" if serving.precision == "fp16" else "; of FP16, which is not served, only the file is left out then"
        notes.append(f"each file that is made is compared with PyTorch, and the build refused if it differs{spared}")
    if serving.platform == "tensorrt":
        if request.plan_folders:
            notes.append("whether the plans were made from these ONNX files is seen when those are made")
        else:
            notes.append("plans are made on this GPU, unless some are there from the same files; then configs follow")
    if request.verify:
        notes.append("then the repository is served and compared with PyTorch before it takes its place")
    return tuple(notes)
