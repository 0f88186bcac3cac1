"""Checks what Triton's config parser does not: that ensembles fit together, before a server loads them.

Triton compares an ensemble with its models only when it loads them, and says little about which tensor is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from cnclip_builder.errors import RepositoryError


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a model: its type and its shape, -1 for a dimension of any size."""

    data_type: int
    dims: tuple[int, ...]
    batched: bool

    def fits(self, other: _Tensor) -> bool:
        return (
            self.data_type == other.data_type
            and self.batched == other.batched
            and len(self.dims) == len(other.dims)
            and all(a == b or -1 in (a, b) for a, b in zip(self.dims, other.dims, strict=True))
        )

    def __str__(self) -> str:
        batch = "batch, " if self.batched else ""
        return f"{pb.DataType.Name(self.data_type)} [{batch}{', '.join(map(str, self.dims))}]"


def check_wiring(configs: Mapping[str, Any]) -> None:
    """Checks every ensemble among the configs.

    Every tensor is made once; what a step takes has been made, with the same type and shape; a step feeds all inputs
    of its model; every output of the ensemble is made; nothing is made for no one; batches are as large as the
    models take; and the version that a step names is one that its model's policy serves.

    Args:
        configs: `ModelConfig` messages by model name; the models that ensembles use are among them.

    Raises:
        RepositoryError: naming the ensemble, the step and the tensor.
    """
    for config in configs.values():
        if config.HasField("ensemble_scheduling"):
            _check_ensemble(config, configs)


def _check_ensemble(ensemble: Any, configs: Mapping[str, Any]) -> None:
    where = f"ensemble {ensemble.name}"
    made = _tensors(ensemble.input, ensemble)
    makers: dict[str, str] = {}
    used: set[str] = set()
    for step in _in_order(ensemble, set(made)):
        inputs, outputs = _check_step(where, step, ensemble, configs)
        for name, tensor in step.input_map.items():
            if not made[tensor].fits(inputs[name]):
                raise RepositoryError(
                    f"{where}: tensor {tensor!r} is {made[tensor]}, but input {name!r} of {step.model_name} is "
                    f"{inputs[name]}"
                )
            used.add(tensor)
        for name, tensor in step.output_map.items():
            if tensor in made:
                raise RepositoryError(f"{where} makes tensor {tensor!r} twice")
            made[tensor], makers[tensor] = outputs[name], step.model_name
    for name, tensor in _tensors(ensemble.output, ensemble).items():
        if name not in made:
            raise RepositoryError(f"{where}: no step makes its output {name!r}")
        if not made[name].fits(tensor):
            raise RepositoryError(
                f"{where}: output {name!r} is {tensor}, but its model {makers[name]} makes it {made[name]}"
            )
        used.add(name)
    idle = set(made) - used
    if idle:
        raise RepositoryError(f"{where}: nothing uses {', '.join(sorted(idle))}")


def _check_step(
    where: str, step: Any, ensemble: Any, configs: Mapping[str, Any]
) -> tuple[dict[str, _Tensor], dict[str, _Tensor]]:
    """Checks a step against its model alone; returns the model's inputs and outputs."""
    model = configs.get(step.model_name)
    if model is None:
        raise RepositoryError(f"{where} uses model {step.model_name}, which is not in the repository")
    if ensemble.max_batch_size > model.max_batch_size:
        raise RepositoryError(
            f"{where} takes batches of {ensemble.max_batch_size}, its model {model.name} of {model.max_batch_size} only"
        )
    _check_version(where, step, model)
    inputs, outputs = _tensors(model.input, model), _tensors(model.output, model)
    _check_names(f"{where}, model {model.name}, input_map", step.input_map, inputs)
    _check_names(f"{where}, model {model.name}, output_map", step.output_map, outputs)
    if missing := set(inputs) - set(step.input_map):
        raise RepositoryError(f"{where} feeds model {model.name} no {', '.join(sorted(missing))}")
    return inputs, outputs


def _check_version(where: str, step: Any, model: Any) -> None:
    """Triton loads an ensemble only when the version that each step names is served; -1 is the newest one that is."""
    policy = model.version_policy
    if step.model_version > 0 and policy.HasField("specific") and step.model_version not in policy.specific.versions:
        served = ", ".join(map(str, policy.specific.versions)) or "none"
        raise RepositoryError(
            f"{where} calls version {step.model_version} of {model.name}, which serves {served}: build that version "
            "again, or write one that is served into the ensemble's step"
        )


def _in_order(ensemble: Any, made: set[str]) -> Iterable[Any]:
    """The steps, each after those that make what it takes; Triton, too, runs them by their tensors."""
    waiting = list(ensemble.ensemble_scheduling.step)
    while waiting:
        ready = [step for step in waiting if made.issuperset(step.input_map.values())]
        if not ready:
            absent = {tensor for step in waiting for tensor in step.input_map.values()} - made
            raise RepositoryError(f"ensemble {ensemble.name}: no step makes {', '.join(sorted(absent))} in time")
        for step in ready:
            yield step
            made.update(step.output_map.values())
            waiting.remove(step)


def _tensors(tensors: Iterable[Any], config: Any) -> dict[str, _Tensor]:
    return {tensor.name: _Tensor(tensor.data_type, tuple(tensor.dims), config.max_batch_size > 0) for tensor in tensors}


def _check_names(where: str, mapped: Iterable[str], known: Mapping[str, _Tensor]) -> None:
    for name in mapped:
        if name not in known:
            raise RepositoryError(f"{where} names {name!r}; the model has {', '.join(sorted(known))}")
