"""promtool checks the Prometheus configuration, the rules, their unit tests and the dashboard's queries."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str) -> str:
    """Run promtool (Debian's package `prometheus`); returns what it says, fails when it complains."""
    ran = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_configuration_and_its_rules_are_sound() -> None:
    said = promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert "2 rule files found" in said


def test_every_alert_fires_and_stays_silent() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(FOLDER / "tests.yml"))


def test_a_rule_that_never_fires_is_noticed(tmp_path: Path) -> None:
    for name in ("recording.yml", "tests.yml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    asked = 'riskstream_redis_up{job="riskstream"} == '
    broken = (FOLDER / "alerts.yml").read_text().replace(f"{asked}0", f"{asked}2")
    (tmp_path / "alerts.yml").write_text(broken)
    with pytest.raises(AssertionError, match="RiskstreamRedisDown"):
        promtool("test", "rules", str(tmp_path / "tests.yml"))


def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "riskstream.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    rules = [
        {"record": f"query:{i}", "expr": re.sub(r"\$\w+", "x", query.replace("$__rate_interval", "5m"))}
        for i, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(file))
