"""When encoders are worked on side by side, and that one's failure is told once all have ended."""

from __future__ import annotations

import threading

import pytest
from cnclip_builder.system import side_by_side
from cnclip_builder.system.side_by_side import run_jobs, threads_of_each


@pytest.mark.parametrize(
    ("encoders", "cores", "memory", "threads"),
    [
        (2, 2, 4 * 10**9, 1),
        (2, 17, 10**12, 8),
        (2, 2, 4 * 10**9 - 1, 0),
        (2, 1, 10**12, 0),
        (1, 16, 10**12, 0),
        (0, 16, 10**12, 0),
    ],
)
def test_cores_are_divided_where_they_and_memory_are_there(
    monkeypatch: pytest.MonkeyPatch, encoders: int, cores: int, memory: int, threads: int
) -> None:
    monkeypatch.setattr(side_by_side, "usable_cores", lambda: cores)
    monkeypatch.setattr(side_by_side, "available_memory", lambda: memory)
    assert threads_of_each(encoders, 10**9) == threads


def test_jobs_run_at_the_same_time_and_answer_in_order() -> None:
    both = threading.Barrier(2, timeout=60)
    assert run_jobs([lambda: both.wait() >= 0 and "a", lambda: both.wait() >= 0 and "b"], side_by_side=True) == [
        "a",
        "b",
    ]


def test_jobs_run_one_after_the_other() -> None:
    seen: list[int] = []
    assert run_jobs([lambda: seen.append(1) or len(seen)] * 3, side_by_side=False) == [1, 2, 3]
    assert run_jobs([], side_by_side=True) == []


def test_the_others_have_ended_when_a_failure_is_told() -> None:
    ended = threading.Event()
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("no")

    def go_on() -> None:
        assert failed.wait(60)
        ended.set()

    with pytest.raises(ValueError, match="no"):
        run_jobs([fail, go_on], side_by_side=True)
    assert ended.is_set()
