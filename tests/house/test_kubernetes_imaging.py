"""The imaging role's manifests: like the vitals worker's, but for what the role needs."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.house import test_kubernetes as vitals
from worker import config

FOLDER = vitals.FOLDER / "imaging"
FILES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
RESOURCES: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest for name, manifest in FILES.items() if name != "kustomization.yaml"
}
SELECTOR = {"app.kubernetes.io/name": "riskstream-imaging"}
DEPLOYMENT = RESOURCES["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
CONFIG: dict[str, str] = vitals.CONFIG | RESOURCES["ConfigMap"]["data"]


@pytest.mark.parametrize("version", [vitals.OLDEST, vitals.NEWEST])
@pytest.mark.parametrize("kind", sorted(RESOURCES.keys() - vitals.CUSTOM))
def test_a_manifest_fits_kubernetes(kind: str, version: str) -> None:
    kubernetes_validate.validate(RESOURCES[kind], version, strict=True)


def test_each_file_is_one_resource_of_the_kustomization() -> None:
    assert sorted(FILES["kustomization.yaml"]["resources"]) == sorted(FILES.keys() - {"kustomization.yaml"})
    for resource in RESOURCES.values():
        assert resource["metadata"] == {
            "name": "riskstream-imaging",
            "namespace": "riskstream",
            "labels": SELECTOR,
        }


def test_everything_selects_the_roles_own_pods() -> None:
    assert DEPLOYMENT["template"]["metadata"]["labels"] == DEPLOYMENT["selector"]["matchLabels"] == SELECTOR
    assert RESOURCES["Service"]["spec"]["selector"] == SELECTOR
    for kind in ("ServiceMonitor", "PodDisruptionBudget"):
        assert RESOURCES[kind]["spec"]["selector"]["matchLabels"] == SELECTOR
    assert RESOURCES["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == SELECTOR


def test_the_pod_is_the_vitals_workers_with_another_role() -> None:
    own = {"image", "args", "envFrom", "resources"}
    assert {k: v for k, v in CONTAINER.items() if k not in own} == {
        k: v for k, v in vitals.CONTAINER.items() if k not in own
    }
    assert CONTAINER["args"] == ["run", "--role", config.Role.IMAGING.value]
    assert [entry["configMapRef"]["name"] for entry in CONTAINER["envFrom"]] == [
        "riskstream",
        "riskstream-imaging",
    ]
    same = ("securityContext", "serviceAccountName", "automountServiceAccountToken", "volumes")
    assert all(POD[key] == vitals.POD[key] for key in same)
    assert POD["terminationGracePeriodSeconds"] == vitals.POD["terminationGracePeriodSeconds"]


def test_the_image_is_the_one_that_compose_builds() -> None:
    compose = yaml.safe_load((vitals.ROOT / "docker-compose.yml").read_text())
    assert CONTAINER["image"] == compose["services"]["worker-imaging"]["image"]


def test_the_role_can_start_with_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable, value in CONFIG.items():
        if variable.endswith("_FILE"):
            (tmp_path / Path(value).name).touch()
            value = str(tmp_path / Path(value).name)
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("RISKSTREAM_KAFKA_USERNAME", "word")
    settings = config.load()
    assert settings.imaging_hosts
    assert settings.imaging_internal_hosts


def test_no_worker_is_without_a_partition() -> None:
    assert DEPLOYMENT["replicas"] <= config.load().partitions


def test_the_policy_opens_the_pacs_beside_what_vitals_need() -> None:
    def opened(spec: dict[str, Any]) -> set[tuple[str, int]]:
        return {
            (peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
            for rule in spec["egress"]
            for peer in rule["to"]
            for port in rule["ports"]
        }

    pacs = urlsplit(CONFIG["RISKSTREAM_IMAGING_HOSTS"])
    assert pacs.hostname
    more = opened(RESOURCES["NetworkPolicy"]["spec"]) - opened(vitals.RESOURCES["NetworkPolicy"]["spec"])
    assert more == {(pacs.hostname.split(".")[1], pacs.port)}
    assert (
        RESOURCES["NetworkPolicy"]["spec"]["ingress"] == vitals.RESOURCES["NetworkPolicy"]["spec"]["ingress"]
    )
