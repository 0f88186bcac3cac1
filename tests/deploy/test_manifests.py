"""The manifests: valid by the published schemas, and as closed as we say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import typer.main
import yaml
from cnclip_gateway._cli import app as gateway_app

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSION = "1.31"

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize, is not here")


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def kustomize(folder: Path) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(folder), "--load-restrictor=LoadRestrictionsNone"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return documents(result.stdout)


@pytest.fixture(params=["cpu", "gpu", "gpu, object store and autoscaling", "cpu, volume and autoscaling"])
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> list[dict[str, Any]]:
    """All that an overlay gives, by kind and name."""
    if request.param in ("cpu", "gpu"):
        return kustomize(KUBERNETES / "overlays" / request.param)
    if request.param.startswith("gpu"):
        return assembled(tmp_path, "gpu", "object-store", "autoscaling")
    return assembled(tmp_path, "cpu", "autoscaling", "model-volume")


def assembled(folder: Path, overlay: str, *components: str) -> list[dict[str, Any]]:
    """What a deployment of one's own gives, as deploy/README.md describes it."""
    shutil.copytree(KUBERNETES, folder / "kubernetes", dirs_exist_ok=True)
    listed = ", ".join(f"kubernetes/components/{name}" for name in components)
    (folder / "kustomization.yaml").write_text(f"resources: [kubernetes/overlays/{overlay}]\ncomponents: [{listed}]\n")
    return kustomize(folder)


def of_kind(rendered: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in rendered if document["kind"] == kind)


@needs_kubectl
def test_valid_by_kubernetes_own_schemas(rendered: list[dict[str, Any]]) -> None:
    assert len(rendered) >= 5
    for document in rendered:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@needs_kubectl
def test_a_wrong_manifest_would_be_found(rendered: list[dict[str, Any]]) -> None:
    deployment = of_kind(rendered, "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSION, strict=True)


@needs_kubectl
def test_selectors_find_the_pods(rendered: list[dict[str, Any]]) -> None:
    labels = of_kind(rendered, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for document in rendered:
        spec = document.get("spec", {})
        selector = {
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
        }.get(document["kind"])
        if selector:
            assert selector(spec).items() <= labels.items()
    clients = of_kind(rendered, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert clients == [{"podSelector": {"matchLabels": {"cnclip-triton-client": "true"}}}]


@needs_kubectl
def test_the_pod_can_do_little(rendered: list[dict[str, Any]]) -> None:
    pod = of_kind(rendered, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_closed(container, {**pod["securityContext"], **container["securityContext"]})
    assert pod["automountServiceAccountToken"] is False
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    startup = container["startupProbe"]
    assert "exec" in startup or startup["httpGet"]["path"] == "/v2/health/ready"
    # Else kubelet takes a busy server for a dead one: the probe asks four times, each for half of its time.
    seconds = float(container["livenessProbe"]["exec"]["command"][2])
    assert container["livenessProbe"]["timeoutSeconds"] > 4 * seconds / 2
    check_ends_in_time(pod)


def check_ends_in_time(pod: dict[str, Any]) -> None:
    """The load balancer looks away first; and then Triton has as long for requests under way as serve.sh grants it."""
    (container,) = pod["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    script = (DEPLOY / "docker/serve.sh").read_text()
    (granted,) = re.findall(r"CNCLIP_EXIT_TIMEOUT_SECS:-(\d+)", script)
    assert int(seconds) + int(granted) < pod["terminationGracePeriodSeconds"]


def check_closed(container: dict[str, Any], context: dict[str, Any]) -> None:
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"/tmp", "/dev/shm"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


@needs_kubectl
def test_the_autoscaler_scales_the_deployment(tmp_path: Path) -> None:
    adapter = yaml.safe_load((KUBERNETES / "components/autoscaling/prometheus-adapter-values.yaml").read_text())
    scaler = documents((KUBERNETES / "components/autoscaling/autoscaler.yaml").read_text())[0]
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter["rules"]["custom"][0]["name"]["as"]
    deployment = of_kind(kustomize(KUBERNETES / "base"), "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


@needs_kubectl
def test_the_autoscalers_labels_are_set_by_prometheus(tmp_path: Path) -> None:
    """Its rule takes series by the labels `namespace` and `pod`, which no server exports by itself."""
    adapter = yaml.safe_load((KUBERNETES / "components/autoscaling/prometheus-adapter-values.yaml").read_text())
    wanted = set(re.findall(r'(\w+)!=""', adapter["rules"]["custom"][0]["seriesQuery"]))
    assert wanted == {"namespace", "pod"}
    job, gateway = yaml.safe_load((DEPLOY / "prometheus/kubernetes.yml").read_text())
    rendered = assembled(tmp_path, "gpu", "monitoring", "gateway")
    monitors = {one["metadata"]["name"]: one for one in rendered if one["kind"] == "PodMonitor"}
    monitor, of_gateway = monitors["cnclip-triton"], monitors["cnclip-gateway"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert wanted <= {config.get("target_label") for config in job["relabel_configs"]}
    assert wanted <= {config.get("targetLabel") for config in endpoint["relabelings"]}
    # The alerts go by the job's name.
    assert 'up{job="triton"}' in (DEPLOY / "prometheus/rules.yml").read_text()
    assert job["job_name"] == "triton"
    assert {"targetLabel": "job", "replacement": "triton"} in endpoint["relabelings"]
    assert 'up{job="gateway"}' in (DEPLOY / "prometheus/rules.yml").read_text()
    assert gateway["job_name"] == "gateway"
    assert {"targetLabel": "job", "replacement": "gateway"} in of_gateway["spec"]["podMetricsEndpoints"][0][
        "relabelings"
    ]
    deployments = {one["metadata"]["name"]: one for one in rendered if one["kind"] == "Deployment"}
    for one, name, config in ((monitor, "cnclip-triton", job), (of_gateway, "cnclip-gateway", gateway)):
        template = deployments[name]["spec"]["template"]
        assert one["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
        assert one["spec"]["podMetricsEndpoints"][0]["port"] in ports
        kept = [each["regex"] for each in config["relabel_configs"] if each.get("action") == "keep"]
        assert kept == [name, one["spec"]["podMetricsEndpoints"][0]["port"]]
        # An evicted pod stays in the list; the operator leaves these out by itself.
        phases = next(each for each in config["relabel_configs"] if each.get("action") == "drop")
        assert phases["source_labels"] == ["__meta_kubernetes_pod_phase"]
        assert [bool(re.fullmatch(phases["regex"], phase)) for phase in ("Failed", "Succeeded", "Running")] == [1, 1, 0]


@needs_kubectl
def test_the_operator_gets_the_same_alerts(tmp_path: Path) -> None:
    """And by default its Helm chart takes nothing that does not bear the name of its release."""
    of_operator = [
        one
        for one in assembled(tmp_path, "cpu", "monitoring")
        if one["apiVersion"].startswith("monitoring.coreos.com/")
    ]
    (rule,) = [one for one in of_operator if one["kind"] == "PrometheusRule"]
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    assert rule["spec"] == rules, "renew prometheus-rule.yaml as its first lines say"
    assert [one["metadata"]["labels"]["release"] for one in of_operator] == ["kube-prometheus-stack"] * 3
    patch = re.search(
        r"^#   - (.*\n)#   (.*\n)", (KUBERNETES / "components/monitoring/kustomization.yaml").read_text(), re.M
    )
    assert patch is not None
    with (tmp_path / "kustomization.yaml").open("a") as own:
        own.write(f"patches:\n- {patch[1]}{patch[2]}")
    renamed = [one["metadata"].get("labels", {}).get("release") for one in kustomize(tmp_path)]
    assert sorted(filter(None, renamed)) == ["NAME"] * 3


@needs_kubectl
def test_clients_find_the_pods_that_an_autoscaler_adds(tmp_path: Path) -> None:
    for components in (("object-store", "autoscaling"), ("autoscaling", "object-store")):
        deployment = of_kind(assembled(tmp_path, "gpu", *components), "Deployment")
        environ = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        assert {"name": "CNCLIP_GRPC_CONNECTION_SECONDS", "value": "120"} in environ
        assert "CNCLIP_ADMIN_KEY" in [variable["name"] for variable in environ]


@needs_kubectl
def test_a_pod_that_polls_starts_without_what_is_half_uploaded(tmp_path: Path) -> None:
    (container,) = of_kind(assembled(tmp_path, "gpu", "object-store"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert "--exit-on-error=false" in container["args"]
    assert "httpGet" not in container["startupProbe"]
    assert container["startupProbe"]["exec"]["command"][-1] == "loaded"
    assert container["startupProbe"]["timeoutSeconds"] == container["livenessProbe"]["timeoutSeconds"]


@needs_kubectl
def test_a_rollout_needs_no_spare_gpu(tmp_path: Path) -> None:
    strategy = of_kind(kustomize(KUBERNETES / "overlays/gpu"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 1, "maxSurge": 0}
    strategy = of_kind(kustomize(KUBERNETES / "overlays/cpu"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 0, "maxSurge": 1}


@needs_kubectl
def test_several_pods_can_mount_the_models(tmp_path: Path) -> None:
    rendered = assembled(tmp_path, "cpu", "model-volume")
    claim = of_kind(rendered, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (volume,) = [
        volume["persistentVolumeClaim"]
        for volume in of_kind(rendered, "Deployment")["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "models"
    ]
    assert volume == {"claimName": claim["metadata"]["name"], "readOnly": True}


def test_compose_starts_a_sick_server_again() -> None:
    """Its health check ends the server, as the script and the image are made for, and `restart` does the rest."""
    triton = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]["triton"]
    assert triton["environment"]["CNCLIP_PROBE_RESTARTS"] == "1"
    assert triton["restart"] == "unless-stopped"
    assert triton["init"] is True
    assert "/tmp" in triton["tmpfs"]
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    assert re.search(r'^HEALTHCHECK .*CMD \["/opt/cnclip/probe.py"\]$', dockerfile, re.MULTILINE)


def test_kserve() -> None:
    """KServe's own schema is in no package; what is a container's is held to Kubernetes'."""
    account, runtime, service = documents((DEPLOY / "kserve/inference-service.yaml").read_text())
    kubernetes_validate.validate(account, KUBERNETES_VERSION, strict=True)
    # The storage initialiser reads the bucket with the secrets of the pod's service account.
    assert service["spec"]["predictor"]["model"]["storageUri"].startswith("s3://")
    assert service["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["secrets"] == [{"name": "cnclip-models-s3"}]
    # Knative refuses startup probes, and probes of a port that is not the one served.
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    (container,) = runtime["spec"]["containers"]
    check_closed(container, container["securityContext"])
    predictor = service["spec"]["predictor"]
    pod = {
        "containers": [container],
        "volumes": runtime["spec"]["volumes"],
        "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"],
    }
    check_ends_in_time(pod)
    # A second's patience, Kubernetes' own, is little for a server that is busy.
    assert [container[f"{kind}Probe"]["timeoutSeconds"] for kind in ("startup", "readiness")] == [5, 5]
    assert predictor["deploymentStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, KUBERNETES_VERSION, strict=True
    )
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [each["name"] for each in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


@needs_kubectl
def test_the_gateway_beside_the_server(tmp_path: Path) -> None:
    """Valid, closed, let in by the server's policy, and probed: itself for life, the model behind it for readiness."""
    rendered = assembled(tmp_path, "cpu", "gateway")
    for document in rendered:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    named = {(one["kind"], one["metadata"]["name"]): one for one in rendered}
    spec = named["Deployment", "cnclip-gateway"]["spec"]
    pod = spec["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    context = {**pod["securityContext"], **container["securityContext"]}
    check_closed({"volumeMounts": [*container["volumeMounts"], {"mountPath": "/dev/shm"}]}, context)
    assert pod["automountServiceAccountToken"] is False
    for selector in (
        spec["selector"]["matchLabels"],
        named["Service", "cnclip-gateway"]["spec"]["selector"],
        named["NetworkPolicy", "cnclip-gateway"]["spec"]["podSelector"]["matchLabels"],
        named["PodDisruptionBudget", "cnclip-gateway"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == {"app.kubernetes.io/name": "cnclip-gateway"}
        assert selector.items() <= labels.items()
    server = named["NetworkPolicy", "cnclip-triton"]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert server.items() <= labels.items()
    assert [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")] == [
        "/health/live",
        "/health/live",
        "/health",
    ]
    (url,) = [one.partition("=")[2] for one in container["args"] if one.startswith("--url=")]
    address, _, port = url.removeprefix("dns:///").partition(":")
    assert int(port) in [one["port"] for one in named["Service", address]["spec"]["ports"]]
    require_options([*container["command"], *container["args"]])
    # The server's own pods are not the gateway's.
    assert "cnclip-gateway" not in named["Service", "cnclip-triton"]["spec"]["selector"].values()


def require_options(command: list[str]) -> None:
    """A gateway's command line is one that its parser takes."""
    assert command[0] == "cnclip-gateway"
    typer.main.get_command(gateway_app).make_context("cnclip-gateway", command[1:])


def test_compose_has_the_gateway() -> None:
    (gateway,) = yaml.safe_load((DEPLOY / "compose/gateway.yaml").read_text())["services"].values()
    require_options([*gateway["entrypoint"], *gateway["command"]])
    services = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
    (url,) = [one.partition("=")[2] for one in gateway["command"] if one.startswith("--url=")]
    assert url.partition(":")[0] in services
    assert all(port.startswith("127.0.0.1:") for port in gateway["ports"])
    assert (gateway["cap_drop"], gateway["read_only"], gateway["tmpfs"]) == (["ALL"], True, ["/tmp"])
    assert gateway["security_opt"] == ["no-new-privileges:true"]
    assert gateway["logging"] == {"driver": "local"}
    context = DEPLOY / "compose" / gateway["build"]["context"]
    assert (context / gateway["build"]["dockerfile"]).samefile(DEPLOY / "docker/client.Dockerfile")
    assert re.search(r"^ARG EXTRAS=\S*\bgateway\b", (DEPLOY / "docker/client.Dockerfile").read_text(), re.MULTILINE)
    assert "http://127.0.0.1:8080/health/live" in gateway["healthcheck"]["test"][-1]
    compile(gateway["healthcheck"]["test"][-1], "the health check", "exec")


@pytest.mark.parametrize("file", ["compose.yaml", "gpu.yaml", "gateway.yaml"])
def test_compose_files_are_valid(file: str) -> None:
    # As compose itself does it: ${NAME:-default}, ${NAME:?complaint}.
    text = re.sub(r"\$\{\w+:([-?])([^}]*)\}", r"\2", (DEPLOY / "compose" / file).read_text())
    if file == "gpu.yaml":  # a part that is merged over the other
        text = text.replace("  triton:\n", "  triton:\n    image: x\n")
    services = compose_spec.PyCompose.from_yaml(text).to_dict()["services"]
    assert ("gateway" if file == "gateway.yaml" else "triton") in services
    with pytest.raises(ValueError, match="imagee"):
        compose_spec.PyCompose.from_yaml(text.replace("    image:", "    imagee:", 1))


def test_compose_is_on_loopback_and_its_files_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"] == {"driver": "local"}  # which has an end
        for volume in service["volumes"]:
            if isinstance(volume, str) and volume.startswith(".."):
                assert (DEPLOY / "compose" / volume.split(":")[0]).exists(), volume
    assert (DEPLOY / "compose" / compose["services"]["triton"]["build"] / "Dockerfile").exists()


def test_the_image_is_pinned() -> None:
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    assert re.search(r"^ARG TRITON=\d\d\.\d\d$", dockerfile, re.MULTILINE)
    assert re.search(r"^USER 1000:1000$", dockerfile, re.MULTILINE)
    for source in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", dockerfile, re.MULTILINE):
        for name in source.split():
            assert (DEPLOY / "docker" / name).exists(), name
    client = (DEPLOY / "docker/client.Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.\d+-slim-\w+$", client, re.MULTILINE)
    assert re.search(r"^USER 1000:1000$", client, re.MULTILINE)
    # What its COPY takes from the whole tree, the file beside it lets through, and nothing else.
    (copied,) = re.findall(r"^COPY (.+) \S+$", client, re.MULTILINE)
    ignored = (DEPLOY / "docker/client.Dockerfile.dockerignore").read_text().split()
    assert ignored == ["*", *(f"!{name}" for name in copied.split())]
    requirements = (DEPLOY / "docker/requirements.txt").read_text().splitlines()
    pins = [line for line in requirements if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z]+==[\d.]+", pin) for pin in pins), pins
    images = [
        service["image"]
        for service in yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"].values()
    ]
    assert all(":" in image or image == "cnclip-triton" for image in images)


@needs_kubectl
def test_no_annotation_has_a_pod_scraped_a_second_time(tmp_path: Path) -> None:
    """The Helm chart of Prometheus scrapes annotated pods by itself, beside kubernetes.yml: every rate counted twice."""
    pods = [
        document["spec"]["template"]
        for document in assembled(tmp_path, "cpu", "gateway")
        if "template" in document.get("spec", {})
    ]
    assert len(pods) == 2
    assert not [
        name for pod in pods for name in pod["metadata"].get("annotations", {}) if name.startswith("prometheus.io/")
    ]


@pytest.mark.parametrize("page", ["deploy/README.md", "deploy/README.zh.md", "docs/gateway.md", "docs/gateway.zh.md"])
def test_documented_compose_commands_set_what_the_files_require(page: str) -> None:
    commands = re.findall(r"^.*docker compose .*$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    assert commands
    for command in commands:
        for file in re.findall(r"--file (\S+\.yaml)", command):
            for name in re.findall(r"\$\{(\w+):\?", (ROOT / file).read_text(encoding="utf-8")):
                assert f"{name}=" in command.partition("docker compose")[0], command
