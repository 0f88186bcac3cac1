"""Every metric that the dashboard, the rules and the autoscaler read is one that a real server exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from cnclip_gateway._metrics import Metrics
from cnclip_gateway._pages import openapi
from cnclip_server import TritonServer

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana/cnclip.json"
RULES = DEPLOY / "prometheus/rules.yml"
ADAPTER = DEPLOY / "kubernetes/components/autoscaling/prometheus-adapter-values.yaml"

# Exported only where there is a GPU, and unknown to the embedded server: from Triton's documentation (user guide, Metrics).
OF_GPUS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_power_usage"}


def expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
    for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]:
        yield rule["seriesQuery"]
        yield rule["metricsQuery"]


def metrics_of(text: str) -> dict[str, set[str]]:
    """The labels of each metric."""
    labels: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    return labels


@pytest.fixture(scope="module")
def exported(demo_server: TritonServer) -> str:
    with urllib.request.urlopen(f"http://{demo_server.metrics_url}/metrics", timeout=10) as response:
        return str(response.read().decode())


@pytest.mark.triton
def test_every_metric_is_exported(exported: str) -> None:
    known = metrics_of(exported)
    used = {name for expression in expressions() for name in re.findall(r"\bnv_\w+", expression)}
    assert len(used) > 10
    assert used <= set(known) | OF_GPUS, used - set(known)


def test_every_metric_of_the_gateway_is_exported() -> None:
    """Its labels' values too: a route that is none, or a status that is never answered, would be silent for ever."""
    metrics = Metrics()
    metrics.answered("/v1/embeddings", 200, 0.1)
    known = metrics_of(metrics.text().decode())
    selectors = [one for text in expressions() for one in re.findall(r"\b(cnclip_gateway_\w+)(?:\{([^}]*)\})?", text)]
    assert {"cnclip_gateway_requests_total", "cnclip_gateway_request_seconds_bucket"} <= {name for name, _ in selectors}
    routes = {"/health", "/health/live", "/metrics", *openapi()["paths"]}
    for name, matchers in selectors:
        assert name in known
        for label, values in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers):
            assert label in known[name]
            if label == "route":
                assert all(any(re.fullmatch(value, route) for route in routes) for value in values.split("|")), values


@pytest.mark.triton
def test_every_label_is_exported(exported: str) -> None:
    known = metrics_of(exported)
    for expression in expressions():
        for name, matchers in re.findall(r"\b(nv_\w+)\{([^}]*)\}", expression):
            if name in known:
                used = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", matchers))
                assert used <= known[name] | {"instance", "namespace", "pod"}, (name, used)


@pytest.mark.triton
def test_what_is_refused_is_counted_as_we_say(demo_server: TritonServer) -> None:
    """docs/observability.md: a refused request counts as the ensemble's failure twice, and as the step's success."""

    def count(metric: str) -> int:
        with urllib.request.urlopen(f"http://{demo_server.metrics_url}/metrics", timeout=10) as response:
            text = response.read().decode()
        return int(text.split(metric + " ")[1].split("\n")[0])

    failures = 'nv_inference_request_failure{model="demo-text",reason="OTHER",version="1"}'
    successes = 'nv_inference_request_success{model="demo-text-tokenize",version="1"}'
    before = count(failures), count(successes)
    text = triton.InferInput("TEXT", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"\xff"]], dtype=object))
    with triton.InferenceServerClient(demo_server.grpc_url) as client:
        for _ in range(3):
            with pytest.raises(triton.InferenceServerException, match="bad rows"):
                client.infer("demo-text", [text])
    deadline = time.monotonic() + 30
    while count(failures) < before[0] + 6 and time.monotonic() < deadline:
        pass  # some are counted behind the answer
    assert (count(failures), count(successes)) == (before[0] + 6, before[1] + 3)


@pytest.mark.triton
def test_texts_that_are_cut_are_counted_and_logged(demo_server: TritonServer) -> None:
    def count() -> int:
        with urllib.request.urlopen(f"http://{demo_server.metrics_url}/metrics", timeout=10) as response:
            text = response.read().decode()
        return int(text.split('cnclip_texts_cut{model="demo-text-tokenize",version="1"} ')[1].split("\n")[0])

    before = count()
    texts = triton.InferInput("TEXT", [3, 1], "BYTES")
    texts.set_data_from_numpy(np.array([["红" * 50], ["红" * 51], ["a " * 400]], dtype=object))
    with triton.InferenceServerClient(demo_server.grpc_url) as client:
        client.infer("demo-text", [texts], request_id="two are cut")
    assert count() - before == 2
    lines = [line for line in demo_server.log_path.read_text().splitlines() if "two are cut" in line]
    cut = [json.loads(json.loads(line.partition("] ")[2])) for line in lines]
    assert [(entry["event"], entry["row"], entry["context_length"]) for entry in cut] == [
        ("cut", 1, 52),
        ("cut", 2, 52),
    ]
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    assert "`cnclip_texts_cut`" in page
    assert all(f"`{key}`" in page for key in cut[0])


@pytest.mark.triton
def test_the_log_line_reads_as_documented(demo_server: TritonServer) -> None:
    """After Triton's prefix a JSON string, and in that the JSON object."""
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    text = triton.InferInput("TEXT", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"\xff\xfe"]], dtype=object))
    lines: list[str] = []
    deadline = time.monotonic() + 30
    with triton.InferenceServerClient(demo_server.grpc_url) as client:
        # Written by another process, and left out where other tests have just had as many as a second may have.
        while not lines and time.monotonic() < deadline:
            with pytest.raises(triton.InferenceServerException):
                client.infer("demo-text", [text], request_id="a request")
            log = demo_server.log_path.read_text().splitlines()
            lines = [line for line in log if "refused" in line and "a request" in line]
    refused: dict[str, Any] = json.loads(json.loads(lines[-1].partition("] ")[2]))
    assert refused["event"] == "refused"
    assert refused["bytes"] == 2
    for key in refused:
        assert f"`{key}`" in page, key


def test_what_clients_call_is_watched_on_servers_of_encoders_alone_too() -> None:
    watched = [
        pattern for one in expressions() for pattern in re.findall(r'model=~"([^"$]*\(image\|text\)[^"]*)"', one)
    ]
    assert len(watched) > 3
    for model in ("vit-b-16-image", "vit-b-16-text-encoder"):
        assert all(re.fullmatch(pattern, model) for pattern in watched)
    assert not any(re.fullmatch(pattern, "vit-b-16-image-preprocess") for pattern in watched)


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    for expression in expressions():
        assert set(re.findall(r"\$(\w+)", expression)) <= variables | {"labels", "value"}
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")


def test_recorded_metrics_are_recorded() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for expression in expressions() for name in re.findall(r"\bcnclip:[\w:]+", expression)}
    assert used == recorded
    for rule in rules:
        if "alert" in rule:
            assert rule["annotations"]["summary"]
            assert rule["labels"]["severity"] in ("warning", "critical")


def test_alerts_fire_when_they_should_and_not_else() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: Debian's package prometheus has it")
    command = [promtool, "test", "rules", str(ROOT / "tests/deploy/rules.test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
