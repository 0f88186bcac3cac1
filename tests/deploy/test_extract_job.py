"""The job of several pods: valid, closed, of one count, and as its pods' shell reads it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.test_manifests import KUBERNETES_VERSION

JOB = ROOT / "deploy/kubernetes/jobs/extract.yaml"


@pytest.fixture
def job() -> dict[str, Any]:
    (document,) = yaml.safe_load_all(JOB.read_text())
    return document  # type: ignore[no-any-return]


def test_valid_by_kubernetes_own_schemas(job: dict[str, Any]) -> None:
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    job["spec"]["completionMod"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)


def test_as_many_pods_as_jobs_and_let_in_by_the_server(job: dict[str, Any]) -> None:
    spec, pod = job["spec"], job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert int(environment["JOBS"]) == spec["completions"] == spec["parallelism"]
    assert pod["metadata"]["labels"]["cnclip-triton-client"] == "true"
    assert pod["spec"]["restartPolicy"] == "Never"  # which backoffLimitPerIndex asks for
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["spec"]["volumes"]}


def test_the_pod_can_do_little(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    context = {**pod["securityContext"], **pod["containers"][0]["securityContext"]}
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("status", "of_pod"), [(0, 0), (1, 0), (2, 2), (3, 3), (4, 4)])
def test_a_job_with_failed_items_is_done_and_another_is_tried_again(
    tmp_path: Path, job: dict[str, Any], status: int, of_pod: int
) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command = tmp_path / "cnclip"
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {status}\n')
    command.chmod(0o755)
    environment = {one["name"]: one["value"] for one in container["env"]}
    environment |= {"JOB_COMPLETION_INDEX": "3", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*container["command"], *container["args"]], env=environment, capture_output=True, text=True)
    assert done.returncode == of_pod
    stops = job["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert 0 not in stops
    assert (status in stops) == (status in (2, 4)), "what is not mended by another try stops the job"
    options = ["--output", "/features/images/", "--shard", "3/8"]
    assert done.stdout.splitlines() == ["extract", "images", "/data/images", *options]


def test_a_pod_that_is_told_to_end_tells_its_client(tmp_path: Path, job: dict[str, Any]) -> None:
    """In a process namespace of its own, as in a container: the first process there gets no signal that it does not handle."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("process namespaces are not to be had here")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nexec {shlex.join(container['lifecycle']['preStop']['exec']['command'])}\n")
    command = tmp_path / "cnclip"
    # It is the hook's signal that ends it; where the shell were not the first process, the hook would reach too many.
    command.write_text(f'#!/bin/sh\ntrap "exit 130" INT\ntest $PPID = 1 || exit 9\n{hook}\nexit 8\n')
    for file in (hook, command):
        file.chmod(0o755)
    environment = {one["name"]: one["value"] for one in container["env"]}
    environment |= {"JOB_COMPLETION_INDEX": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*alone, *container["command"], *container["args"]], env=environment, timeout=20)
    assert done.returncode == 130
