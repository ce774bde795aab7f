"""The Dockerfile and docker-compose.yml, read rather than run: tests have no container engine.

Compose is validated against the Compose Specification's schema; the rest are this project's own rules.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from worker.config import Settings
from worker.deadlines import shutdown_s

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = {name for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"topics"}
SETTINGS = {f"RISKSTREAM_{name.upper()}" for name in Settings.model_fields}

DIGEST = r"@sha256:[0-9a-f]{64}"
PINNED = re.compile(rf"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*{DIGEST}|[a-z0-9./-]+:v\d+\.\d+\.\d+{DIGEST}")
# By exact tag alone: no registry was at hand to ask for the digests of these.
BY_TAG = re.compile(
    r"nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3|apache/kafka:\d+\.\d+\.\d+|redis:\d+\.\d+\.\d+-alpine"
)
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|API_KEY|CREDENTIAL", re.IGNORECASE)

each_service = pytest.mark.parametrize("name", SERVICES)


class Instruction(NamedTuple):
    """One Dockerfile instruction, its continued lines joined."""

    keyword: str
    value: str


class Stage(NamedTuple):
    """One build stage: the image or stage it starts from, its name, its instructions."""

    base: str
    name: str
    instructions: list[Instruction]

    def values(self, keyword: str) -> list[str]:
        return [value for found, value in self.instructions if found == keyword]


def instructions(text: str) -> Iterator[Instruction]:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, value = line.split(maxsplit=1)
            yield Instruction(keyword, value)


def read_stages() -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for instruction in instructions((ROOT / "Dockerfile").read_text()):
        if instruction.keyword == "FROM":
            base, _, name = instruction.value.split()
            current = stages.setdefault(name, Stage(base, name, []))
        else:
            current.instructions.append(instruction)
    return stages


STAGES = read_stages()
FINAL = ["cpu", "imaging", "gpu"]
IMAGING = {"imaging", "worker-imaging"}


# Dockerfile


@pytest.mark.parametrize("name", STAGES)
def test_every_base_image_is_pinned(name: str) -> None:
    base = STAGES[name].base
    assert base in STAGES or PINNED.fullmatch(base) or BY_TAG.fullmatch(base), base


@pytest.mark.parametrize("name", FINAL)
def test_an_image_runs_the_worker_as_nobody_in_particular(name: str) -> None:
    stage = STAGES[name]
    assert stage.values("USER") == ["10001"]
    assert [keyword for keyword, _ in stage.instructions].index("USER") < len(stage.instructions) - 1
    assert "--uid 10001" in stage.values("RUN")[0]
    assert json.loads(stage.values("ENTRYPOINT")[0]) == ["riskstream"]
    role = ["--role", "imaging"] if name in IMAGING else []
    assert json.loads(stage.values("CMD")[0]) == ["run", *role]


@pytest.mark.parametrize("name", FINAL)
def test_an_image_is_checked_by_the_check_command(name: str) -> None:
    options, _, command = STAGES[name].values("HEALTHCHECK")[0].partition("CMD ")
    assert json.loads(command)[:2] == ["riskstream", "check"]
    assert ("imaging" in json.loads(command)) == (name in IMAGING)
    assert all(f"--{option}=" in options for option in ("interval", "timeout", "start-period", "retries"))


@pytest.mark.parametrize("name", FINAL)
def test_an_image_holds_no_build_tools_and_no_source(name: str) -> None:
    copies = STAGES[name].values("COPY")
    assert copies == [f"--from={name}-venv /opt/riskstream /opt/riskstream"]


@pytest.mark.parametrize(
    ("stage", "copy"), [(stage.name, copy) for stage in STAGES.values() for copy in stage.values("COPY")]
)
def test_what_is_copied_exists(stage: str, copy: str) -> None:
    *words, _ = copy.split()
    if words[0].startswith("--from="):
        assert words[0].removeprefix("--from=") in STAGES
    else:
        assert [word for word in words if not (ROOT / word).exists()] == [], stage


def test_what_is_copied_enters_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for stage in STAGES.values()
        for copy in stage.values("COPY")
        if not copy.startswith("--from=")
        for word in copy.split()[:-1]
    }
    assert copied == allowed


def test_the_wheel_holds_the_packages_that_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {f"{name} {name}" for name in packages} <= set(STAGES["wheel"].values("COPY"))
    assert project["project"]["scripts"]["riskstream"] == "worker.cli:main"


def test_the_dockerfile_holds_no_secret() -> None:
    for stage in STAGES.values():
        assert [
            value for value in [*stage.values("ENV"), *stage.values("ARG")] if SECRET_NAME.search(value)
        ] == []


@pytest.mark.parametrize("name", FINAL)
def test_the_image_sets_only_settings_that_exist(name: str) -> None:
    names = set(re.findall(r"RISKSTREAM_[A-Z_]+", " ".join(STAGES[name].values("ENV"))))
    assert names
    assert names <= SETTINGS


# docker-compose.yml


def test_compose_fits_the_compose_specification() -> None:
    result = subprocess.run(
        [
            str(Path(sys.executable).with_name("check-jsonschema")),
            "--builtin-schema",
            "vendor.compose-spec",
            str(ROOT / "docker-compose.yml"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@each_service
def test_every_image_is_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    if name in BUILT:
        assert service["build"]["target"] in STAGES
        assert service["image"] == f"riskstream:{project_version()}-{service['build']['target']}"
    else:
        image = service["image"]
        assert PINNED.fullmatch(image) or BY_TAG.fullmatch(image), image


def project_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_the_broker_is_the_one_that_the_tests_run_on() -> None:
    pom = (ROOT / "tests" / "integration" / "kafka" / "pom.xml").read_text()
    tested = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>(.+)</version>", pom)
    assert tested
    assert SERVICES["kafka"]["image"].split("@")[0] == f"apache/kafka:{tested[1]}"
    assert SERVICES["topics"]["image"] == SERVICES["kafka"]["image"]


@each_service
def test_every_service_is_checked(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    if name in ONE_SHOT:
        assert check == {"disable": True}
        assert SERVICES[name]["restart"].startswith("on-failure")
    else:
        assert check["test"][0] in {"CMD", "CMD-SHELL"}
        assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


@each_service
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["restart"]
    assert not service.get("privileged")
    assert service.get("network_mode") is None


@each_service
def test_no_service_is_root(name: str) -> None:
    if name in BUILT:
        assert STAGES[SERVICES[name]["build"]["target"]].values("USER") == ["10001"]
    else:
        assert SERVICES[name]["user"].split(":")[0] not in {"", "0", "root"}


@pytest.mark.parametrize("name", ["redis", "worker", "worker-gpu", "worker-imaging", "prometheus"])
def test_file_systems_are_read_only_where_the_image_allows_it(name: str) -> None:
    assert SERVICES[name]["read_only"] is True


@each_service
def test_no_secret_stands_in_the_file(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        if SECRET_NAME.search(key):
            assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]*\}", value), (
                f"{key} must come from outside, with no default"
            )
    assert not re.search(r"(redis|https?|kafka)://[^/\s]*:[^/\s]*@", json.dumps(SERVICES[name]))


@each_service
def test_settings_that_are_passed_exist(name: str) -> None:
    names = {key for key in SERVICES[name].get("environment", {}) if key.startswith("RISKSTREAM_")}
    assert names <= SETTINGS
    assert bool(names) == (name in BUILT)


@pytest.mark.parametrize("name", sorted(BUILT))
def test_the_worker_can_start_with_its_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SERVICES[name]["environment"].items():
        unset = value.startswith("${") and value.endswith(":-}")
        monkeypatch.setenv(key, "" if unset else "secret" if value.startswith("${") else value)
    settings = Settings()
    assert settings.bootstrap_servers == ["kafka:9092"]
    assert settings.http_host == "0.0.0.0"
    assert SERVICES[name]["expose"] == [str(settings.http_port)]
    assert settings.redis_password.get_secret_value() == "secret"


@pytest.mark.parametrize("name", sorted(BUILT))
def test_the_worker_waits_for_what_it_needs(name: str) -> None:
    conditions = {other: wait["condition"] for other, wait in SERVICES[name]["depends_on"].items()}
    assert conditions == {
        "kafka": "service_healthy",
        "redis": "service_healthy",
        "topics": "service_completed_successfully",
    }


def test_the_gpu_is_asked_for_only_by_its_profile() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert "profiles" not in SERVICES["worker"]


@each_service
def test_what_is_mounted_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, mode = volume.split(":")[0], volume.split(":")[-1]
        if source.startswith("./"):
            assert (ROOT / source).is_file()
            assert mode == "ro"
        else:
            assert source in COMPOSE["volumes"]


@each_service
def test_ports_are_published_on_the_loopback_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_every_topic_of_the_settings_is_created() -> None:
    script = (ROOT / "deploy" / "kafka" / "create-topics.sh").read_text()
    created = {name: int(count) for name, count in re.findall(r"^create (\S+) (\d+)", script, re.MULTILINE)}
    topics = {field.default for name, field in Settings.model_fields.items() if name.startswith("topic_")}
    assert created.keys() == topics
    assert created["vitals"] == created["risk-alerts"]


def test_inputs_are_kept_for_as_long_as_a_rebuild_reads_back() -> None:
    script = (ROOT / "deploy" / "kafka" / "create-topics.sh").read_text()
    found = re.search(r'^create vitals \d+ "\$\(days (\d+)\)"', script, re.MULTILINE)
    assert found
    assert int(found[1]) * 24 > Settings.model_fields["rebuild_horizon_h"].default


def test_prometheus_has_its_rules() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    for name in config["rule_files"]:
        assert mounted[f"./deploy/prometheus/{name}"] == f"/etc/prometheus/{name}"


@pytest.mark.parametrize("name", sorted(BUILT))
def test_a_worker_has_the_time_to_drain(name: str) -> None:
    longest = shutdown_s(Settings.model_fields["rebalance_timeout_s"].default)
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > longest


def test_prometheus_scrapes_every_worker() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    vitals, imaging = (jobs[name]["dns_sd_configs"][0] for name in ("riskstream", "riskstream-imaging"))
    assert set(vitals["names"]) == BUILT - IMAGING
    assert set(imaging["names"]) == BUILT & IMAGING
    ports = {port for name in BUILT for port in SERVICES[name]["expose"]}
    assert {str(vitals["port"]), str(imaging["port"])} == ports


def test_the_imaging_worker_is_checked_as_one() -> None:
    check = SERVICES["worker-imaging"]["healthcheck"]
    assert check["test"] == [
        *SERVICES["worker"]["healthcheck"]["test"][:3],
        "--role",
        "imaging",
        "--timeout",
        "10",
    ]
    assert {key: check[key] for key in ("interval", "timeout", "retries")} == {
        key: SERVICES["worker"]["healthcheck"][key] for key in ("interval", "timeout", "retries")
    }


def test_a_topic_of_pictures_takes_the_largest_that_the_role_takes() -> None:
    script = (ROOT / "deploy" / "kafka" / "create-topics.sh").read_text()
    found = re.search(r"^create imaging .* max\.message\.bytes=(\d+)$", script, re.MULTILINE)
    assert found
    assert int(found[1]) == Settings.model_fields["imaging_max_record_bytes"].default
