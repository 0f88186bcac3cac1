"""The settings of an ensemble, read from its configs and written back into them, comments and all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_bench.subject import read_config

if TYPE_CHECKING:
    from cnclip_builder.tensors import Tower

__all__ = ["Settings", "copy_ensemble", "read_settings", "remember_settings", "set_max_batch_size", "write_settings"]

_PREPARATION = {"image": "image-preprocess", "text": "text-tokenize"}
_THREADS = "intra_op_thread_count"
_DECODING_THREADS = "threads"
_PARAMETERS = {"asked": "preferred_batch_size", "decoding": _DECODING_THREADS, "threads": _THREADS}
_PATTERNS = {
    "max_batch_size": r"\bmax_batch_size\s*:\s*(\d+)",
    "count": r"\binstance_group\b[^}]*?\bcount\s*:\s*(\d+)",
    "delay": r"\bmax_queue_delay_microseconds\s*:\s*(\d+)",
    "preferred": r"\bpreferred_batch_size\s*:\s*\[\s*(\d+)\s*\]",
    **{
        field: rf'\bkey\s*:\s*"{parameter}"\s*value\s*:?\s*\{{\s*string_value\s*:\s*"(\d+)"'
        for field, parameter in _PARAMETERS.items()
    },
}


@dataclass(frozen=True)
class Settings:
    """How an ensemble is served.

    Attributes:
        max_batch_size: Most rows of a request and of a batch, of all its models.
        encoder_instances: Copies of the encoder.
        encoder_threads: Threads of each on a CPU, 0 for all cores; None where the config names none.
        encoder_queue_delay_microseconds: How long a request waits for others to share its batch.
        preferred_batch_size: Rows of the encoder's batches, and of the requests that clients send by default;
            None where the encoder's batches are as large as they come.
        preparation_instances: Processes that decode images, or tokenise texts.
        preparation_threads: Threads of each that decodes images, 0 for its share of the cores; None for texts.
    """

    max_batch_size: int
    encoder_instances: int
    encoder_threads: int | None
    encoder_queue_delay_microseconds: int
    preferred_batch_size: int | None
    preparation_instances: int
    preparation_threads: int | None = None

    def changes_from(self, other: Settings) -> dict[str, int]:
        """What differs, and the values here."""
        before = asdict(other)
        return {name: value for name, value in asdict(self).items() if value != before[name]}


def read_settings(repository: Path, name: str, tower: Tower) -> Settings:
    """Reads an ensemble's settings.

    Raises:
        OSError: A config is missing.
        ValueError: A model has several groups of instances, which no single number tells of.
    """
    encoder, preparation = (read_config(folder) for folder in _folders(repository, name, tower)[1:])
    for config in (encoder, preparation):
        if len(config.instance_group) != 1:
            raise ValueError(
                f"{config.name} has {len(config.instance_group)} instance groups: leave one, and try again"
            )
    threads = encoder.parameters[_THREADS].string_value if _THREADS in encoder.parameters else None
    decoding = preparation.parameters[_DECODING_THREADS].string_value if tower == "image" else ""
    return Settings(
        encoder.max_batch_size,
        encoder.instance_group[0].count,
        None if threads is None else int(threads),
        encoder.dynamic_batching.max_queue_delay_microseconds,
        next(iter(encoder.dynamic_batching.preferred_batch_size), None),
        preparation.instance_group[0].count,
        int(decoding) if decoding else None,
    )


def write_settings(repository: Path, name: str, tower: Tower, settings: Settings) -> None:
    """Writes settings into an ensemble's configs, each replaced in one step; all else in them stays.

    The manifest's hashes of them are renewed, where there is one.

    Raises:
        ValueError: A config lacks what is to be changed, or has it in another form; nothing is written.
    """
    from cnclip_builder.repository.manifest import renew_files
    from cnclip_builder.system.atomic import replacing_file

    changes = settings.changes_from(read_settings(repository, name, tower))
    ensemble, encoder, preparation = (folder / "config.pbtxt" for folder in _folders(repository, name, tower))
    edits = {file: {"max_batch_size": settings.max_batch_size} for file in (ensemble, encoder, preparation)}
    for file, field, setting in (
        (encoder, "count", "encoder_instances"),
        (encoder, "threads", "encoder_threads"),
        (encoder, "delay", "encoder_queue_delay_microseconds"),
        (encoder, "preferred", "preferred_batch_size"),
        (ensemble, "asked", "preferred_batch_size"),
        (preparation, "count", "preparation_instances"),
        (preparation, "decoding", "preparation_threads"),
    ):
        if setting in changes:
            edits[file][field] = changes[setting]
    texts = {file: _edited(file, values) for file, values in edits.items()}
    for file, text in texts.items():
        with replacing_file(file) as partial:
            partial.write_text(text, encoding="utf-8")
    renew_files(repository, texts)


def remember_settings(repository: Path, name: str, tower: Tower, changes: Mapping[str, int]) -> None:
    """Writes changed settings into the repository's manifest, from which the next `make repo` takes them.

    Args:
        repository: Its folder.
        name: Of the models.
        tower: Which ensemble's.
        changes: From `Settings.changes_from`.

    Raises:
        BuildError: The repository has no manifest, or none of this model.
    """
    from cnclip_builder.repository.manifest import update_serving

    serving: dict[str, Any] = {}
    for setting, value in changes.items():
        if setting == "preparation_instances":
            serving["preprocess_instances" if tower == "image" else "tokenize_instances"] = value
        elif setting == "preparation_threads":
            serving["preprocess_threads"] = value
        else:
            serving[setting] = {tower: value}
    if "preferred_batch_size" in changes:  # what clients ask for and what the encoder's batches keep to are one here
        serving["merged_batch_size"] = {tower: changes["preferred_batch_size"]}
    update_serving(repository, name, serving)


def set_max_batch_size(repository: Path, name: str, tower: Tower, size: int) -> None:
    """Writes the most rows of a request into an ensemble's configs; what they prefer stays within it.

    Raises:
        ValueError: As `write_settings`.
    """
    settings = read_settings(repository, name, tower)
    preferred = settings.preferred_batch_size and min(settings.preferred_batch_size, size)
    write_settings(repository, name, tower, replace(settings, max_batch_size=size, preferred_batch_size=preferred))


def copy_ensemble(repository: Path, name: str, tower: Tower, destination: Path) -> None:
    """Lays out a repository of one ensemble with configs of its own; all large files are links to the first."""
    for model in _folders(repository, name, tower):
        copy = destination / model.name
        copy.mkdir(parents=True)
        for entry in model.iterdir():
            if entry.name == "config.pbtxt":
                shutil.copy(entry, copy)
            else:
                (copy / entry.name).symlink_to(entry.resolve())


def _folders(repository: Path, name: str, tower: Tower) -> list[Path]:
    """The ensemble's, the encoder's and the preparation's."""
    return [repository / f"{name}-{model}" for model in (tower, f"{tower}-encoder", _PREPARATION[tower])]


def _edited(file: Path, values: dict[str, int]) -> str:
    """The text of a config with some of its numbers changed.

    Numbers are changed in the text, so that comments stay, and the outcome is read as Triton reads it: it must be what
    the same change makes of the message.
    """
    from cnclip_builder.repository.render import parse_config

    before = file.read_text(encoding="utf-8")
    after, wanted = before, parse_config(before, str(file))
    for field, value in values.items():
        _set(wanted, field, value)
        after = _replaced(after, _PATTERNS[field], str(value))
        if field == "max_batch_size":
            after = _limited(after, value)
    if parse_config(after, str(file)) != wanted:
        shown = ", ".join(f"{field} {value}" for field, value in values.items())
        raise ValueError(f"{file} is not laid out as cnclip-build lays it out, so set this in it by hand: {shown}")
    return after


def _set(config: Any, field: str, value: int) -> None:
    if field == "max_batch_size":
        config.max_batch_size = value
        for batch in (*config.model_warmup, *config.optimization.cuda.graph_spec):
            batch.batch_size = min(batch.batch_size, value)
    elif field == "count":
        config.instance_group[0].count = value
    elif field == "delay":
        config.dynamic_batching.max_queue_delay_microseconds = value
    elif field == "preferred":
        config.dynamic_batching.preferred_batch_size[:] = [value]
    else:
        config.parameters[_PARAMETERS[field]].string_value = str(value)


def _limited(text: str, most: int) -> str:
    """Keeps the batches that warm a model up, and those of recorded launches, within the most rows of a batch."""

    def limited(match: re.Match[str]) -> str:
        in_comment = "#" in text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        return match[0] if in_comment or int(match[2]) <= most else f"{match[1]}{most}"

    return re.sub(r"(\bbatch_size\s*:\s*)(\d+)", limited, text)


def _replaced(text: str, pattern: str, number: str) -> str:
    """Replaces the group of the first match that does not begin in a comment; none leaves the text as it is."""
    for match in re.finditer(pattern, text):
        if "#" not in text[text.rfind("\n", 0, match.start()) + 1 : match.start()]:
            return text[: match.start(1)] + number + text[match.end(1) :]
    return text
