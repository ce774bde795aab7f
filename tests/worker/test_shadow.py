"""What makes a worker a shadow: its settings, the headers of what it writes, what it says of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import repository
from engines.engine import Engine
from tests.shadowing import VERSION, two_versions
from tests.worker.records import PLACE, LocalPath, worsening
from tests.worker.shelf import ALERTS, published
from worker import cli, config, metrics, shadow
from worker.alert_log import read_last
from worker.config import ConfigError, Role, Settings
from worker.serving import Ladder
from worker.shadow import shadowed

ROOT = Path(cli.__file__).resolve().parent.parent


def settings(**more: Any) -> Settings:
    return config.load(**{"shadow_version": 7, "instance": "here", **more})


def test_without_a_version_nothing_changes() -> None:
    served = config.load()
    assert shadowed(served) is served


def test_a_shadow_has_its_own_group_topics_and_no_feedback_to_carry() -> None:
    served = settings(group="ward")
    found = shadowed(served)
    changed = {
        name: value for name, value in found.model_dump().items() if value != served.model_dump()[name]
    }
    assert changed == {
        "group": "ward-shadow-7",
        "instance": "here-shadow-7",
        "topic_alerts": "shadow-alerts",
        "topic_scores": "shadow-scores",
        "topic_dead_letters": "shadow-dead-letters",
        "topic_feedback": "",
        "topic_findings": "",
        "publish_scores": True,
    }


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"topic_shadow_alerts": "risk-alerts"}, "topic_shadow_alerts and topic_alerts are both risk-alerts"),
        ({"topic_shadow_scores": "vitals"}, "topic_shadow_scores and topic_vitals are both vitals"),
        ({"topic_scores": "shadow-scores"}, "topic_shadow_scores and topic_scores are both shadow-scores"),
        ({"topic_shadow_dead_letters": "findings"}, "topic_shadow_dead_letters and topic_findings"),
        ({"topic_shadow_scores": "shadow-alerts"}, "topic_shadow_scores and topic_shadow_alerts"),
        ({"topic_shadow_alerts": ""}, "topic_shadow_alerts is empty"),
        ({"group": "g" * 195}, "over 200 characters"),
    ],
)
def test_a_shadow_that_would_touch_what_is_served_is_refused(more: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        shadowed(settings(**more))


@pytest.mark.parametrize("role", [Role.IMAGING, Role.ALL])
def test_pictures_have_no_shadow(role: Role) -> None:
    with pytest.raises(ConfigError, match=f"role vitals, not {role.value}"):
        shadowed(settings(), role)
    assert shadowed(config.load(), role).shadow_version is None


def test_being_made_a_shadow_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="are both shadow-alerts"):
        shadowed(shadowed(settings()))


def test_headers_tell_a_shadows_messages_and_bodies_do_not(engine: Engine) -> None:
    records = worsening("p", 0, 12)
    served, shade = LocalPath(engine), LocalPath(engine, shadow=7)
    for path in (served, shade):
        path.process_now(records)
    assert [m.value for m in shade.outbox.messages] == [m.value for m in served.outbox.messages]
    headers = [dict(message.headers) for message in shade.outbox.messages]
    assert {h["ce_type"] for h in headers} >= {b"riskstream.shadow.alert.raised", b"riskstream.shadow.score"}
    assert all(h["ce_type"].startswith(b"riskstream.shadow.") for h in headers)
    assert {h["ce_source"] for h in headers} == {b"/riskstream/shadow-7/cluster/vitals/3"}
    ours = {dict(message.headers)["ce_source"] for message in served.outbox.messages}
    assert ours == {b"/riskstream/cluster/vitals/3"}


async def test_a_shadow_takes_over_no_episode_of_another_version(engine: Engine) -> None:
    shelf, path = await published(engine, worsening("p", 0, 12))
    found = [
        await read_last(shelf, ALERTS, PLACE, path.pipeline.policies.names, 1000, shadow=version)
        for version in (None, 1, 7)
    ]
    assert [len(last["risk"]) for last in found] == [1, 1, 0]
    assert [len(last["news2"]) for last in found] == [1, 1, 1]


def test_a_shadow_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two_versions(tmp_path)
    ours = settings(model_repository=folder, shadow_version=VERSION)
    shadow.announce(ours, repository.read_config(folder, "vitals", VERSION))
    assert metrics.shadow.labels("vitals", str(VERSION))._value.get() == 1
    assert "is the served one" not in capsys.readouterr().out
    shadow.announce(ours, repository.read_config(folder, "vitals"))
    assert "this version is the served one" in capsys.readouterr().out


def test_a_worker_that_serves_does_not(engine: Engine) -> None:
    before = [metric.samples for metric in metrics.shadow.collect()]
    shadow.announce(config.load(), engine.config)
    assert [metric.samples for metric in metrics.shadow.collect()] == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--shadow", "9"), "no version 9 of vitals in "),
        (("run", "--shadow", "0"), "Invalid value for '--shadow'"),
    ],
)
def test_a_version_that_is_not_there_ends_the_start(arguments: tuple[str, ...], said: str) -> None:
    ended = run(*arguments, HTTP_PORT="0")
    assert ended.returncode in {1, 2}
    assert said in " ".join(ended.stderr.replace("│", " ").split())
    assert "Traceback" not in ended.stderr


def test_check_looks_at_the_shadows_settings() -> None:
    ended = run("check", "--json", "--timeout", "2", SHADOW_VERSION="1", GROUP="ward", BROKER="127.0.0.1:1")
    shown = json.loads(ended.stdout)
    assert shown["settings"]["group"] == "ward-shadow-1"
    assert shown["settings"]["topic_alerts"] == "shadow-alerts"
    assert any("vitals version 1" in finding["detail"] for finding in shown["findings"])


def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {f"RISKSTREAM_{name}": value for name, value in more.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_second_version_of_these_tests_says_something_else(tmp_path: Path) -> None:
    folder = two_versions(tmp_path)
    said = []
    for version in (None, VERSION):
        engine = repository.load(folder, "vitals", version=version)
        path = LocalPath(engine)
        path.process_now(worsening("p", 0, 12))
        assert {alert.model.version for alert in path.outbox.alerts} == {version or 1}
        said.append([score.risk for score in path.outbox.scores])
        engine.close()
    assert len(said[0]) == len(said[1]) == 12
    assert said[0] != said[1]


async def test_a_shadow_stays_with_its_version_when_that_is_served(tmp_path: Path) -> None:
    folder = two_versions(tmp_path)
    ladders = [
        Ladder(config.load(model_repository=folder, shadow_version=version)) for version in (None, VERSION)
    ]
    for ladder in ladders:
        await ladder.start()
    assert [ladder.current.config.version for ladder in ladders] == [1, VERSION]
    promoted = (folder / "vitals" / str(VERSION) / "config.json").read_bytes()
    (folder / "vitals" / "config.json").write_bytes(promoted)
    assert [await ladder.look() for ladder in ladders] == [True, False]
    assert [ladder.current.config.version for ladder in ladders] == [VERSION, VERSION]
    for ladder in ladders:
        await ladder.close()
