"""Runs all steps within their time, and writes the page and the JSON file anew whenever there is something new."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from cnclip_bench.gpu_report.findings import Findings
from cnclip_bench.gpu_report.installed import MEASURED_CARD
from cnclip_bench.gpu_report.rows import Fact, Row, Setup
from cnclip_bench.gpu_report.run import Outcome, run_step
from cnclip_bench.gpu_report.steps import STEPS
from cnclip_bench.output import conditions

__all__ = ["measure"]


def measure(setup: Setup, name: str, seconds: float, output: Path, say: Callable[[str], None]) -> Findings:
    """Runs the steps.

    Args:
        setup: What they measure.
        name: Of the architecture.
        seconds: For all of them together.
        output: Where the page, the JSON file and the steps' logs go.
        say: Shows a line of progress.
    """
    began = time.monotonic()
    findings = Findings(f"{name} on {'a GPU' if setup.gpu else 'the CPU'}", setup, conditions())
    findings.write(output)

    def report(row: Row) -> None:
        if isinstance(row, Fact) and row.what == MEASURED_CARD:
            findings.title = f"{name} on {row.value}"
        findings.rows.append(row)
        findings.write(output)

    with mock.patch.dict(os.environ, _environment()):
        for number, step in enumerate(STEPS, start=1):
            elapsed = time.monotonic() - began
            say(f"{number} of {len(STEPS)}, after {elapsed:.0f} s: {step.name}")
            lacking = next((one for one in findings.outcomes if one.name == step.needs and one.status != "done"), None)
            if lacking is not None:
                outcome = Outcome(step.name, "passed over", 0.0, f"it needs what {lacking.name!r} was to make")
            else:
                log = output / "gpu-report" / f"{step.name.replace(' ', '-')}.log"
                outcome = run_step(step, setup, seconds - elapsed, log, report)
            if outcome.reason:
                say(f"  {outcome.status}: {outcome.reason}")
            findings.outcomes.append(outcome)
            findings.write(output)
    return findings


def _environment() -> dict[str, str]:
    """What processes get that are started meanwhile, and the servers that they start."""
    # No LD_LIBRARY_PATH: what is measured finds libraries as it does for users, and a container's server takes its own.
    return {
        "ORT_DISABLE_TELEMETRY": "1",
        # Or torch's threads spin while they wait for each other: on two busy cores its step took four times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
    }
