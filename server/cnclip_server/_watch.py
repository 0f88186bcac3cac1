"""Finds the models that no longer answer.

Triton's Python backend runs each instance of a model in a process of its own, a stub. It never starts one again that
has died, does not notice one that is stopped or hangs, and goes on to call the model, and itself, ready: whoever
serves has to look for himself. A model that is unloaded or loaded anew ends its stubs in order: Triton buries those at
once, while one that crashed stays a zombie. From Triton 2.64 (container 25.12) on `/v2/models/NAME/ready` asks for the
stub's process, and buries it if it is dead; so that answer counts too.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Counts", "ModelWatch", "children_of", "parse_counts"]

_STUB = "triton_python_backend_stub"
_MOST_OF_A_NAME = 15  # Linux cuts a process's name
_INSTANCE_ARGUMENT = 8  # the stub's argument that holds the instance's name, such as NAME_0_0
_INSTANCE = re.compile(r"(?P<model>.+)_\d+_\d+")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

# For how long each trouble must be seen, unbroken, before it is one. A stub is a zombie for a moment when it ends in
# order; SIGSTOP and SIGCONT may be somebody's debugger.
_DEAD_S = 1.0
_STOPPED_S = 5.0
_NOT_READY_S = 7.0  # what the server said last must have been said twice
_FAILING_S = 10.0
# Requests wait, none is executed, and the model's processes use no processor: a deadlock. Where they do work, or where
# there is no such process to look at, a batch may just take long, as a large one of a ViT-H-14 on few cores.
_IDLE_S = 15.0
_WORKING_S = 600.0
_IDLE_SHARE = 0.02
# How many looks have to see new failures, and when old ones no longer count.
_FAILURES = 3
_FORGET_S = 60.0

_COUNTERS = {
    "nv_inference_pending_request_count": "pending",
    "nv_inference_exec_count": "executed",
    "nv_inference_request_failure": "failed",
}
_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Counts:
    """What the metrics say of one version of a model.

    Attributes:
        pending: Requests that wait now.
        executed: Batches executed since the start.
        failed: Requests since the start that failed because its backend did.
    """

    pending: int = 0
    executed: int = 0
    failed: int = 0


def parse_counts(metrics: str) -> dict[tuple[str, str], Counts]:
    """Reads tritonserver's Prometheus metrics.

    Returns:
        The counts by model and version.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for sample in _SAMPLE.finditer(metrics):
        counter = _COUNTERS.get(sample["name"])
        labels = dict(_LABEL.findall(sample["labels"]))
        if counter is None or "model" not in labels or labels.get("reason", "BACKEND") != "BACKEND":
            continue
        key = (labels["model"], labels.get("version", ""))
        found.setdefault(key, {})[counter] = int(float(sample["value"]))
    return {key: Counts(**counts) for key, counts in found.items()}


@dataclass(frozen=True)
class _Stub:
    """A process of a Python model, as the kernel sees it now."""

    pid: int
    model: str
    state: str
    cpu_s: float


@dataclass
class _Standstill:
    """Since when a version of a model has executed nothing although it was asked to."""

    counts: Counts
    at: float
    cpu_s: float
    rises: int = 0
    rose_at: float = 0.0


class ModelWatch:
    """Looks at a server's models again and again, and remembers what it saw.

    Args:
        pid: The process id of tritonserver.
        clock: Gives the time in seconds.
    """

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pid = pid
        self._clock = clock
        self._models: dict[int, str] = {}  # of stubs, which lose their command line when they die
        self._since: dict[tuple[str, object], float] = {}
        self._standstills: dict[tuple[str, str], _Standstill] = {}
        self._stuck: dict[str, str] = {}
        self._not_ready: frozenset[str] = frozenset()
        self._stubs()  # learns their models' names

    def look(self) -> dict[str, str]:
        """Looks at the processes.

        Returns:
            What is wrong, as a sentence, by the model's name: by what is seen now, and by the last `hear`.
        """
        stubs = self._stubs()
        dead = {stub.pid: stub.model for stub in stubs if stub.state in "ZX"}
        stopped = {stub.pid: stub.model for stub in stubs if stub.state == "T"}
        troubles = dict(self._stuck)
        for name, sick, patience_s, sentence in (
            ("stopped", stopped, _STOPPED_S, "a process of {} is stopped"),
            ("not ready", {model: model for model in self._not_ready}, _NOT_READY_S, "{} lost a process"),
            ("dead", dead, _DEAD_S, "a process of {} died, and Triton does not replace it"),
        ):
            troubles |= {model: sentence.format(model) for model in self._lasting(name, sick, patience_s)}
        return troubles

    def hear(
        self,
        counts: Mapping[tuple[str, str], Counts],
        not_ready: Collection[str],
        answers: Callable[[str, str], bool],
    ) -> None:
        """Takes in what the server says of itself.

        Args:
            counts: Of its metrics, by model and version.
            not_ready: Models that it lists as ready and, asked for each, calls not ready.
            answers: Asks a version of a model for something that it can do, and tells whether it did. The C++
                onnxruntime backend fails for want of nothing but sense in a request (token ids that no vocabulary has),
                and does not count such a batch as executed: whoever sends only those must not have a server restarted.
        """
        now = self._clock()
        stubs = self._stubs()
        self._not_ready = frozenset(not_ready)
        self._standstills = {key: at for key, at in self._standstills.items() if key in counts}
        self._stuck = {}
        for (model, version), count in counts.items():
            cpu_s = sum(stub.cpu_s for stub in stubs if stub.model == model)
            has_process = any(stub.model == model for stub in stubs)
            if trouble := self._standstill((model, version), count, now, cpu_s, answers, has_process=has_process):
                self._stuck[model] = trouble

    def _standstill(
        self,
        key: tuple[str, str],
        counts: Counts,
        now: float,
        cpu_s: float,
        answers: Callable[[str, str], bool],
        *,
        has_process: bool,
    ) -> str | None:
        """Compares one version's counts with those before; gives what is wrong with it."""
        past = self._standstills.get(key)
        if past is None or counts.executed != past.counts.executed:
            self._standstills[key] = _Standstill(counts, now, cpu_s)
            return None
        if past.rises and now - past.rose_at > _FORGET_S:
            past.rises = 0
        if counts.failed > past.counts.failed:
            past.rises, past.rose_at = past.rises + 1, now
        past.counts = counts
        if not counts.pending and not past.rises:
            past.at, past.cpu_s = now, cpu_s
            return None
        seconds = now - past.at
        if past.rises >= _FAILURES and seconds >= _FAILING_S:
            if not answers(*key):
                return f"{key[0]} fails every request"
            self._standstills[key] = _Standstill(counts, now, cpu_s)
            return None
        idle = has_process and cpu_s - past.cpu_s < _IDLE_SHARE * seconds
        if counts.pending and seconds >= (_IDLE_S if idle else _WORKING_S):
            return f"requests wait for {key[0]} and none has been executed for {seconds:.0f} s"
        return None

    def _lasting(self, name: str, sick: Mapping[int, str] | Mapping[str, str], patience_s: float) -> list[str]:
        """The models of which a trouble has been seen for so long, at every look."""
        now = self._clock()
        for key in [key for key in self._since if key[0] == name and key[1] not in sick]:
            del self._since[key]
        return sorted(
            {model for one, model in sick.items() if now - self._since.setdefault((name, one), now) >= patience_s}
        )

    def _stubs(self) -> list[_Stub]:
        """The stubs that the server has now, those that have died and are not yet buried included."""
        stubs = []
        children = children_of(self._pid)
        self._models = {pid: model for pid, model in self._models.items() if pid in children}
        for pid in children:
            if pid not in self._models:
                model = _model_of(pid)
                if model is None:
                    continue
                self._models[pid] = model
            if (seen := _state(pid)) is not None:
                stubs.append(_Stub(pid, self._models[pid], *seen))
        return stubs


def children_of(pid: int) -> set[int]:
    """The processes that any thread of a process has started and that it has not yet buried."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.update(map(int, thread.read_text().split()))
    return found


def _model_of(pid: int) -> str | None:
    """The model that a stub runs, or words for it if the stub is dead and its command line gone; None if it is none."""
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return None
    if not program and name == _STUB[:_MOST_OF_A_NAME]:
        return "a Python model"
    if Path(program).name != _STUB or len(arguments) < _INSTANCE_ARGUMENT:
        return None
    instance = _INSTANCE.fullmatch(arguments[_INSTANCE_ARGUMENT - 1])
    return instance["model"] if instance else None


def _state(pid: int) -> tuple[str, float] | None:
    """A process's state, as a letter, and the processor time that it has used, in seconds; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The state follows the name, which may itself hold parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return state, (int(fields[10]) + int(fields[11])) / _TICKS_A_SECOND
