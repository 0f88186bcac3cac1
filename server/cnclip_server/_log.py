"""Reads the reason for a failure out of tritonserver's log."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TAIL_LINES = 40
_METRICS_UP = "Started Metrics Service at"

# Log lines look like: E1124 00:09:01.603358 21286 model_lifecycle.cc:642] "failed to load 'm' version 1:
# Internal: ..."
_MESSAGE = re.compile(r'^[EIW]\d{4} [\d:.]+ \d+ [\w.]+:\d+\] "(?P<text>.*)"$', re.MULTILINE)
_FAILED_MODEL = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?:[A-Z][a-z ]+: )?(?P<why>.*)", re.DOTALL)
_OTHER_FAILURES = re.compile(r"^(?:Poll failed for model directory|Invalid argument: |failed to start )")
_PROTOBUF = re.compile(r"Error parsing text-format [\w.]+: (?P<text>.*)$", re.MULTILINE)
_LAST_WORD = re.compile(r"^(?:error: |Error: |(?:/.*/)?tritonserver: )(?P<text>.*)$", re.MULTILINE)
_NOT_BOUND = re.compile(r"failed to start (?P<service>\w+) service: .* already in use")
_TRACEBACK = re.compile(r"\s*\n\nAt:\n.*", re.DOTALL)
# What becomes of a thread too many, in libc's words and Python's.
_NO_THREAD = re.compile("Resource temporarily unavailable|can't start new thread")
_NO_GPU = re.compile("KIND_GPU but no GPUs are available|specifies invalid or unsupported gpu id")
# What opens a restricted API, as the flags write it: APIS:HEADER=KEY.
_KEY = re.compile(r"(--(?:grpc-restricted-protocol|http-restricted-api)[= ][^\s=]+=)\S+")
MORE_THREADS = "let more threads run here, some 200 for a model (a container's limit of PIDs, ulimit -u)"
_ESCAPES = {r"\n": "\n", r"\"": '"', r"\t": "\t", r"\\": "\\"}


def failure_reason(log: str) -> str | None:
    """Why tritonserver gave up, in one line, or None where its log does not say.

    Args:
        log: The whole log.

    Returns:
        Every model's own error if models failed to load; else what else was logged as an error.
    """
    messages = [_unescaped(match["text"]) for match in _MESSAGE.finditer(log)]
    failed = {found["model"]: found["why"] for text in messages if (found := _FAILED_MODEL.match(text))}
    if failed:
        return "; ".join(f"model '{model}' failed to load: {_one_line(why)}" for model, why in failed.items())
    others = [text for text in messages if _OTHER_FAILURES.search(text)]
    others += [f"config.pbtxt: {match['text']}" for match in _PROTOBUF.finditer(log)]
    if others:
        return "; ".join(_one_line(text) for text in dict.fromkeys(others))
    words = _LAST_WORD.findall(log)
    return _one_line(words[-1]) if words else None


def lack_of_threads(log: str) -> str | None:
    """What mends it if no more threads could be started, which no other word of the log tells; else None."""
    return MORE_THREADS if _NO_THREAD.search(log) else None


def lack_of_gpus(log: str) -> str | None:
    """What mends it if a model is for a GPU that Triton does not find; else None."""
    if not _NO_GPU.search(log):
        return None
    return (
        "no such GPU is there: see what nvidia-smi lists, and what CUDA_VISIBLE_DEVICES leaves of it (a container is "
        "given GPUs by --gpus all); or build the repository with --target cpu, or for GPUs that are there (--gpus)"
    )


def without_keys(text: str, keys: Iterable[str] = ()) -> str:
    """A command line, or what quotes one, without the keys to restricted APIs.

    Args:
        text: What is to be shown.
        keys: Keys that it may hold in any other form.
    """
    for key in keys:
        text = text.replace(key, "***")
    return _KEY.sub(r"\1***", text)


def serves_metrics(log: str) -> bool:
    """Whether the last of the three services is up."""
    return _METRICS_UP in log


def unbound_service(log: str) -> str | None:
    """Which of `grpc`, `http`, `metrics` could not listen on its port, or None."""
    match = _NOT_BOUND.search(log)
    return match["service"].lower() if match else None


def tail(log: str) -> str:
    """The last lines of a log."""
    return "\n".join(log.splitlines()[-_TAIL_LINES:])


def last_line(log: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def _unescaped(text: str) -> str:
    return re.sub(r'\\[n"t\\]', lambda match: _ESCAPES[match[0]], text)


def _one_line(text: str) -> str:
    """Drops the traceback that the Python backend appends, and its exception's name; joins the lines."""
    text = _TRACEBACK.sub("", text).removeprefix("TritonModelException: ")
    return " ".join(text.split())
