"""What a plan is to be made from, and the sidecar that says what one was made from.

A plan is good for one ONNX file, one TensorRT and one kind of GPU; nothing in the plan itself says so in a form that
can be read without that TensorRT. The sidecar does, and is read before every use of the plan.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cnclip_builder.errors import PlanError, SettingError
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.profiles import Profile
from cnclip_builder.tensors import InputSpec, Precision, Tower

Edges = Literal["served", "cn_clip"]
"""What a plan takes and gives.

`served`: what Triton serves, uint8 pixels or int32 ids to both kinds of features; `vit-b-16.img.fp16.served.trt`.
`cn_clip`: what cn_clip's own scripts make, normalised float32 images or ids to un-normalised features, under their
name, `vit-b-16.img.fp16.trt`. A plan of one kind never has the other's name.
"""

JOBS_NAME = "plans.json"
"""The file that lists the jobs of a folder."""

SIDECAR_SUFFIX = ".json"

_SCHEMA = 2


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as its driver gives it.
        compute_capability: "8.6".
    """

    name: str
    compute_capability: str


@dataclass(frozen=True)
class PlanJob:
    """A plan to be made.

    Attributes:
        plan: its file name.
        tower: "image" or "text".
        precision: "fp32" or "fp16"; it is in the ONNX file.
        graphs: names of the ONNX files by their opset: 17, and 16 for TensorRT 8.5.
        probes: name of the .npz file of inputs, and PyTorch's and ONNX Runtime's features of them.
        files: sha256 of every file that the job needs, by name: graphs, weights and probes.
        input: the encoder's input tensor.
        features: name of the output with un-normalised features.
        normalised: name of the output with normalised ones, if there is one.
        profiles: what the plan is tuned for.
    """

    plan: str
    tower: Tower
    precision: Precision
    graphs: Mapping[str, str]
    probes: str
    files: Mapping[str, str]
    input: InputSpec
    features: str
    normalised: str | None
    profiles: tuple[Profile, ...]

    def sources(self, opset: str) -> dict[str, str]:
        """The sha256 of the graph of an opset and of its weights, by name: all that the plan's bytes rest on."""
        others = {self.probes, *(name for key, name in self.graphs.items() if key != opset)}
        return {name: digest for name, digest in self.files.items() if name not in others}

    def as_dict(self) -> dict[str, Any]:
        """The job for JSON."""
        return {**asdict(self), "profiles": [profile.as_dict() for profile in self.profiles]}

    @classmethod
    def from_dict(cls, job: Mapping[str, Any]) -> PlanJob:
        """Reads what `as_dict` gave."""
        tensor = job["input"]
        for name, digest in (*job["graphs"].items(), *job["files"].items()):
            if not isinstance(name, str) or not isinstance(digest, str):
                raise TypeError(f"{name!r}: {digest!r} are no names")
        if job["probes"] not in job["files"] or not set(job["graphs"].values()) <= set(job["files"]):
            raise ValueError("it names files of which it has no hashes")
        if Path(job["plan"]).name != job["plan"] or job["precision"] not in ("fp32", "fp16"):
            raise ValueError(f"{job['plan']!r} in {job['precision']!r} is no plan")
        return cls(
            **{
                **job,
                "input": InputSpec(tensor["name"], tensor["dtype"], tuple(tensor["axes"])),
                "profiles": tuple(map(Profile.from_dict, job["profiles"])),
            }
        )


@dataclass(frozen=True)
class PlanRecord:
    """What a plan was made from and how well it was measured to fit: its sidecar.

    Attributes:
        plan: the plan's file name.
        sha256: of the plan.
        precision: "fp32" or "fp16".
        opset: of the ONNX file it was made from.
        sources: sha256 by name of that file and its weights.
        profiles: what it is tuned for.
        input: its input tensor.
        options: settings of TensorRT's builder that it was made with.
        tensorrt: the version that made it.
        device: the GPU that it was made on.
        build_seconds: how long TensorRT took.
        parity: the measured distances to PyTorch and to ONNX Runtime, by what was compared.
        libraries: versions, by name, of the libraries beside TensorRT that it was made with and needs to be served.
    """

    plan: str
    sha256: str
    precision: Precision
    opset: str
    sources: Mapping[str, str]
    profiles: tuple[Profile, ...]
    input: InputSpec
    options: BuildOptions
    tensorrt: str
    device: Device
    build_seconds: float
    parity: Mapping[str, Mapping[str, Any]]
    libraries: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON."""
        return {**asdict(self), "profiles": [profile.as_dict() for profile in self.profiles], "schema": _SCHEMA}

    def require_made_from(self, job: PlanJob) -> None:
        """Refuses a plan of another ONNX file, precision or range.

        Raises:
            PlanError: naming what differs.
        """
        self._require_same("ONNX file", dict(self.sources), job.sources(self.opset))
        self.require_made_for(job.precision, job.input, job.profiles)

    def require_made_for(self, precision: Precision, tensor: InputSpec, profiles: tuple[Profile, ...]) -> None:
        """Refuses a plan of another precision, input or range.

        Raises:
            PlanError: naming what differs.
        """
        self._require_same("precision", self.precision, precision)
        self._require_same("input", self.input, tensor)
        self._require_same("profiles", self.profiles, profiles)

    def _require_same(self, what: str, ours: object, wanted: object) -> None:
        if ours != wanted:
            raise PlanError(
                f"{self.plan} was made from another {what} ({_brief(ours)}, wanted {_brief(wanted)}): "
                "build it again from the present artefacts"
            )

    def require_built_with(self, options: BuildOptions) -> None:
        """Refuses a plan that was made with other settings of the builder.

        Raises:
            PlanError: naming both.
        """
        if self.options != options:
            raise PlanError(f"{self.plan} was made with {self.options}, wanted {options}: build it again")

    def require_runs_on(self, tensorrt: str, device: Device) -> None:
        """Refuses a plan of another TensorRT or GPU.

        Raises:
            PlanError: naming what differs.
        """
        if self.tensorrt != tensorrt:
            raise PlanError(
                f"{self.plan} was made by TensorRT {self.tensorrt}, here is {tensorrt}: a plan runs only under the "
                "version that made it; build it again here"
            )
        if self.device != device:
            raise PlanError(
                f"{self.plan} was made on {_named(self.device)}, here is {_named(device)}: a plan is tuned for one "
                "kind of GPU; build it again here"
            )


def sidecar_of(plan: Path) -> Path:
    """The path of a plan's sidecar."""
    return plan.with_name(plan.name + SIDECAR_SUFFIX)


def read_record(plan: Path) -> PlanRecord:
    """Reads a plan's sidecar.

    Raises:
        PlanError: there is no plan, no sidecar, or one that can't be read.
    """
    if not plan.is_file():
        raise PlanError(f"there is no plan {plan}: build it on the machine that is to run it")
    path = sidecar_of(plan)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("schema") != _SCHEMA:
            raise PlanError(f"{path} is of another version of this builder: build the plan again")
        tensor = record["input"]
        float(record["parity"]["pytorch"]["cosine_distance"])  # what is printed of every plan
        return PlanRecord(
            **{
                **record,
                "profiles": tuple(map(Profile.from_dict, record["profiles"])),
                "device": Device(**record["device"]),
                "input": InputSpec(tensor["name"], tensor["dtype"], tuple(tensor["axes"])),
                "options": BuildOptions(**record["options"]),
            }
        )
    except FileNotFoundError:
        raise PlanError(
            f"{plan} has no sidecar {path.name}, so nothing tells what it was made from: copy both"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SettingError) as error:
        raise PlanError(f"{path} can't be read ({error!r}): build the plan again") from error


def write_record(plan: Path, record: PlanRecord) -> None:
    """Writes a plan's sidecar."""
    sidecar_of(plan).write_text(json.dumps(record.as_dict(), indent=2) + "\n", encoding="utf-8")


def read_jobs(folder: Path) -> tuple[PlanJob, ...]:
    """Reads the jobs of a folder.

    Raises:
        PlanError: there are none, or they can't be read.
    """
    path = folder / JOBS_NAME
    try:
        return tuple(map(PlanJob.from_dict, json.loads(path.read_text(encoding="utf-8"))["jobs"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SettingError) as error:
        raise PlanError(
            f"{path} can't be read ({error!r}): write the folder again with cnclip-build tensorrt"
        ) from error


def write_jobs(folder: Path, jobs: tuple[PlanJob, ...]) -> None:
    """Writes the jobs of a folder."""
    text = json.dumps({"jobs": [job.as_dict() for job in jobs]}, indent=2) + "\n"
    (folder / JOBS_NAME).write_text(text, encoding="utf-8")


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {digest[:12]}…" for name, digest in sorted(value.items()))
    return "; ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _named(device: Device) -> str:
    return f"{device.name} (compute capability {device.compute_capability})"
