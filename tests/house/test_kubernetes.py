"""The manifests in deploy/kubernetes, read rather than applied: tests have no cluster.

Kubernetes' own kinds are validated against its strict schemas, which refuse unknown fields. Those of KEDA and
the Prometheus Operator have no schema here: their fields are compared with what this project uses of them.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.house.promql import exposed, selectors
from worker import deadlines
from worker.config import Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
FILES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
RESOURCES: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest for name, manifest in FILES.items() if name != "kustomization.yaml"
}
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}
OLDEST, NEWEST = "1.31", "1.34"
"""Kubernetes versions that the manifests are for."""

SELECTOR = {"app.kubernetes.io/name": "riskstream"}
SETTINGS = {f"RISKSTREAM_{name.upper()}": name for name in Settings.model_fields}
DEPLOYMENT = RESOURCES["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
CONFIG: dict[str, str] = RESOURCES["ConfigMap"]["data"]
README = (ROOT / "deploy" / "README.md").read_text()


def setting(name: str) -> Any:
    """A setting as the pods have it: the ConfigMap's, or the default."""
    variable = f"RISKSTREAM_{name.upper()}"
    field = Settings.model_fields[name]
    return type(field.default)(CONFIG[variable]) if variable in CONFIG else field.default


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", sorted(RESOURCES.keys() - CUSTOM))
def test_a_manifest_fits_kubernetes(kind: str, version: str) -> None:
    kubernetes_validate.validate(RESOURCES[kind], version, strict=True)


def test_the_schemas_refuse_what_is_unknown() -> None:
    wrong = json.loads(json.dumps(RESOURCES["Deployment"]))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_each_file_is_one_resource_of_the_kustomization() -> None:
    kustomization = FILES["kustomization.yaml"]
    assert sorted(kustomization["resources"]) == sorted(FILES.keys() - {"kustomization.yaml"})
    assert len(RESOURCES) == len(FILES) - 1
    assert kustomization["namespace"] == RESOURCES["Namespace"]["metadata"]["name"]


@pytest.mark.parametrize("kind", sorted(RESOURCES.keys() - {"Namespace"}))
def test_a_resource_is_named_alike(kind: str) -> None:
    metadata = RESOURCES[kind]["metadata"]
    assert metadata == {"name": "riskstream", "namespace": "riskstream", "labels": SELECTOR}


def test_everything_selects_the_pods() -> None:
    assert DEPLOYMENT["template"]["metadata"]["labels"] == SELECTOR
    assert DEPLOYMENT["selector"]["matchLabels"] == SELECTOR
    assert RESOURCES["Service"]["spec"]["selector"] == SELECTOR
    assert RESOURCES["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == SELECTOR
    assert RESOURCES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == SELECTOR
    assert RESOURCES["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == SELECTOR


# The pod


def test_the_pod_is_confined() -> None:
    security = POD["securityContext"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"USER {security['runAsUser']}\n" in dockerfile
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert not POD.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert RESOURCES["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pod_has_bounds() -> None:
    assert CONTAINER["resources"].keys() == {"requests", "limits"}
    assert all(part.keys() == {"cpu", "memory"} for part in CONTAINER["resources"].values())
    assert all("sizeLimit" in volume["emptyDir"] for volume in POD["volumes"] if "emptyDir" in volume)
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in POD["volumes"]}
    assert mounts["tmp"]["mountPath"] == "/tmp"
    assert mounts["tls"]["readOnly"] is True


def test_the_image_is_the_one_that_compose_builds() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert CONTAINER["image"] == compose["services"]["worker"]["image"]


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")],
)
def test_a_probe_asks_an_endpoint_that_exists(probe: str, path: str) -> None:
    (port,) = CONTAINER["ports"]
    assert CONTAINER[probe]["httpGet"] == {"path": f"/health/{path}", "port": port["name"]}
    assert f'"/health/{path}"' in (ROOT / "worker" / "http.py").read_text()
    assert port["containerPort"] == setting("http_port")
    assert CONTAINER[probe]["timeoutSeconds"] <= CONTAINER[probe]["periodSeconds"]


def test_a_worker_has_the_time_to_drain() -> None:
    longest = deadlines.shutdown_s(setting("rebalance_timeout_s"))
    assert longest + 5 <= POD["terminationGracePeriodSeconds"] <= longest + 30


def test_the_group_waits_for_a_worker_that_lets_go() -> None:
    # Within a rebalance a worker has half of its time for its checkpoints.
    assert deadlines.shutdown_s(setting("rebalance_timeout_s")) - deadlines.STOP_S < setting(
        "rebalance_timeout_s"
    )
    assert setting("session_timeout_s") < setting("rebalance_timeout_s")


def test_liveness_does_not_race_the_workers_own_judgement() -> None:
    probe = CONTAINER["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < setting("stall_after_s")
    start = CONTAINER["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 60


# Settings and secrets


def test_the_worker_can_start_with_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable, value in CONFIG.items():
        if variable.endswith("_FILE"):
            assert value.startswith("/etc/riskstream/tls/")
            (tmp_path / Path(value).name).touch()
            value = str(tmp_path / Path(value).name)
        monkeypatch.setenv(variable, value)
    for entry in CONTAINER["env"]:
        monkeypatch.setenv(entry["name"], "word")
    assert CONFIG.keys() | {entry["name"] for entry in CONTAINER["env"]} <= SETTINGS.keys()
    settings = Settings()
    assert settings.kafka_security_protocol == "SASL_SSL"
    assert settings.redis.get_secret_value().startswith("rediss://")
    assert settings.http_host == "0.0.0.0"


def test_secrets_come_from_secrets_alone() -> None:
    assert not [name for name in CONFIG if re.search("PASSWORD|USERNAME|TOKEN|SECRET", name)]
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": RESOURCES["ConfigMap"]["metadata"]["name"]}}]
    references = [entry["valueFrom"]["secretKeyRef"] for entry in CONTAINER["env"]]
    assert {reference["name"] for reference in references} == {"riskstream"}
    assert {"Secret"} & RESOURCES.keys() == set()
    for key in (*(reference["key"] for reference in references), "kafka-ca.pem", "redis-ca.pem"):
        assert f"{key}=" in README, f"deploy/README.md does not say how {key} is created"


# What depends on the group and its topics


def test_no_worker_is_without_a_partition() -> None:
    script = (ROOT / "deploy" / "kafka" / "create-topics.sh").read_text()
    found = re.search(r"^create vitals (\d+)", script, re.MULTILINE)
    assert found
    scale = RESOURCES["ScaledObject"]["spec"]
    assert 2 <= scale["minReplicaCount"] <= scale["fallback"]["replicas"] <= scale["maxReplicaCount"]
    assert scale["maxReplicaCount"] <= min(int(found[1]), setting("partitions"))


def test_the_scaler_scales_the_deployment_on_lag() -> None:
    scale = RESOURCES["ScaledObject"]["spec"]
    deployment = RESOURCES["Deployment"]
    assert "replicas" not in DEPLOYMENT
    assert scale["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert scale.keys() == {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "fallback", "advanced"),
        "triggers",
    }
    (trigger,) = scale["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold", "ignoreNullValues"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    (selector,) = selectors(trigger["metadata"]["query"])
    recorded = {rule["record"]: rule["expr"] for rule in rules("recording.yml") if "record" in rule}
    assert {s.metric for s in selectors(recorded[selector.metric])} == {
        "riskstream_lag_records"
    } & exposed().keys()
    behaviour = scale["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "riskstream"},
        "spec": {"scaleTargetRef": scale["scaleTargetRef"], "maxReplicas": 8, "behavior": behaviour},
    }
    kubernetes_validate.validate(autoscaler, NEWEST, strict=True)


def test_a_disruption_leaves_a_worker() -> None:
    assert RESOURCES["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert DEPLOYMENT["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_policy_opens_what_the_settings_need() -> None:
    spec = RESOURCES["NetworkPolicy"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    (ingress,) = spec["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": CONTAINER["ports"][0]["name"]}]
    opened = {
        (peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in spec["egress"]
        for peer in rule["to"]
        for port in rule["ports"]
    }
    needed = {("kube-system", 53)}
    for address in (*CONFIG["RISKSTREAM_BROKER"].split(","), CONFIG["RISKSTREAM_REDIS"].split("//")[1]):
        parts = urlsplit(f"//{address}")
        assert parts.hostname
        needed.add((parts.hostname.split(".")[1], parts.port or 0))
    assert opened == needed


# Prometheus


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_job_has_the_name_that_alerts_ask_for() -> None:
    monitor, service = RESOURCES["ServiceMonitor"]["spec"], RESOURCES["Service"]
    job = service["metadata"]["labels"][monitor["jobLabel"]]
    asked = {
        value
        for rule in rules("alerts.yml")
        for selector in selectors(rule["expr"])
        for label, operator, value in selector.matchers
        if label == "job" and operator == "="
    }
    assert asked == {job}
    assert monitor.keys() == {"jobLabel", "selector", "endpoints"}
    (endpoint,) = monitor["endpoints"]
    assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert f'"{endpoint["path"]}"' in (ROOT / "worker" / "http.py").read_text()


def test_the_operators_copy_of_the_rules_is_current() -> None:
    path = FOLDER / "prometheusrule.py"
    spec = importlib.util.spec_from_file_location("prometheusrule", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert RESOURCES["PrometheusRule"] == module.resource(), "run `make rules`"
