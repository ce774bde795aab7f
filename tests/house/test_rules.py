"""Prometheus rules and the Grafana dashboard ask for what the worker has; promtool runs the rules."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from schemas.features import FEATURES
from tests.house.promql import Selector, exposed, grouped_labels, selectors
from worker import metrics

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
BOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "riskstream.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def rules_of(file: str) -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((FOLDER / file).read_text())["groups"] for rule in group["rules"]
    ]


ALERTS = {rule["alert"]: rule for rule in rules_of("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in rules_of("recording.yml")}
UNIT_TESTS = yaml.safe_load((FOLDER / "tests.yml").read_text())
TESTS = UNIT_TESTS["tests"]
QUERIES = {target["expr"] for panel in PANELS for target in panel["targets"]}
EXPRESSIONS = sorted(QUERIES | {rule["expr"] for rule in (*ALERTS.values(), *RECORDED.values())})
SERIES = exposed()
SOURCE = "\n".join(
    path.read_text() for name in ("worker", "engines", "schemas") for path in (ROOT / name).glob("*.py")
)
CLOSED_LABELS = {"fate", "outcome", "how", "reason"}
"""Labels whose values stand in the source."""

each_alert = pytest.mark.parametrize("name", ALERTS)


def labels_of(metric: str) -> set[str] | None:
    if metric in RECORDED:
        return grouped_labels(RECORDED[metric]["expr"]) - {"le"}
    return SERIES.get(metric)


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("up", [Selector("up", ())]),
        (
            'sum by (job) (rate(a_total{b="c d", e!~"f"}[5m] offset 2d)) > 0.5',
            [("a_total", (("b", "=", "c d"), ("e", "!~", "f")))],
        ),
        ("a and on (job) b or time() - c:d:e < 14.4 * 0.01", [("a", ()), ("b", ()), ("c:d:e", ())]),
        ("histogram_quantile(0.9, sum by (le) (rate(a_bucket[$__rate_interval])))", [("a_bucket", ())]),
    ],
)
def test_selectors_are_found(expression: str, found: list[Selector]) -> None:
    assert list(selectors(expression)) == found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_exists(expression: str) -> None:
    asked = list(selectors(expression))
    assert asked
    for selector in asked:
        labels = labels_of(selector.metric)
        assert labels is not None, f"{selector.metric} is no metric of the worker and no recorded series"
        assert {label for label, _, _ in selector.matchers} <= labels
        for label, operator, value in selector.matchers:
            if label in CLOSED_LABELS and operator in {"=", "!="}:
                assert f'"{value}"' in SOURCE, f"no {label} is {value}"
            if label == "feature":
                assert value in {feature.name for feature in FEATURES}
    known = set().union(*(labels_of(selector.metric) or set() for selector in asked))
    assert grouped_labels(expression) <= known


def test_buckets_that_are_asked_for_exist() -> None:
    metrics.end_to_end.labels("vitals")  # a labelled histogram has no buckets before its first label
    bounds = {
        s.labels["le"]
        for f in REGISTRY.collect()
        if f.name == "riskstream_end_to_end_seconds"
        for s in f.samples
        if "le" in s.labels
    }
    asked = {
        value for e in EXPRESSIONS for s in selectors(e) for label, _, value in s.matchers if label == "le"
    }
    assert asked
    assert asked <= bounds


@each_alert
def test_an_alert_says_what_the_person_on_call_needs(name: str) -> None:
    rule = ALERTS[name]
    assert re.fullmatch(r"Riskstream[A-Z][A-Za-z]+", name)
    assert rule["for"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


@each_alert
def test_an_alert_names_nothing_but_metrics_labels(name: str) -> None:
    text = " ".join(ALERTS[name]["annotations"].values())
    used = set(re.findall(r"\$labels\.(\w+)", text))
    assert used <= grouped_labels(ALERTS[name]["expr"]) | set().union(
        *(labels_of(s.metric) or set() for s in selectors(ALERTS[name]["expr"]))
    )
    assert used <= {"instance", "topic", "partition", "reason", "feature", "model", "source"}


@each_alert
def test_an_alert_is_of_the_workers_that_serve(name: str) -> None:
    """What a rule begins with names their job, on either side of an `or`: a shadow raises nothing."""
    for side in re.split(r"\)\s+or\s+sum", ALERTS[name]["expr"]):
        jobs = {matcher for matcher in next(selectors(side)).matchers if matcher[0] == "job"}
        assert jobs <= {
            ("job", "=", "riskstream"),
            ("job", "=", "riskstream-imaging"),
            ("job", "=~", "riskstream(-imaging)?"),
        }
        assert jobs


@each_alert
def test_an_alert_is_tested_to_fire_and_to_stay_silent(name: str) -> None:
    cases = [case for test in TESTS for case in test["alert_rule_test"] if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


def test_the_tests_evaluate_every_group_in_a_fixed_order() -> None:
    files = [yaml.safe_load((FOLDER / file).read_text()) for file in ("recording.yml", "alerts.yml")]
    assert UNIT_TESTS["group_eval_order"] == [group["name"] for file in files for group in file["groups"]]


def test_every_recorded_series_is_used() -> None:
    assert RECORDED.keys() == {s.metric for e in EXPRESSIONS for s in selectors(e)} & RECORDED.keys()
    assert all(re.fullmatch(r"riskstream:[a-z_0-9]+:[a-z0-9_]+", name) for name in RECORDED)


# Dashboard


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_is_complete(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all('job=~"$job"' in target["expr"] for target in panel["targets"])
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(numbers) == len(set(numbers))


def test_variables_that_are_used_are_defined() -> None:
    defined = {variable["name"] for variable in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD["panels"]))) - {"__rate_interval"}
    assert used == defined == {"datasource", "job", "instance"}


def test_every_metric_is_on_the_dashboard() -> None:
    expressions = QUERIES | {
        RECORDED[s.metric]["expr"] for e in QUERIES for s in selectors(e) if s.metric in RECORDED
    }
    shown = {re.sub("_(bucket|sum|count)$", "", s.metric) for e in expressions for s in selectors(e)}
    metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in SERIES if name.startswith("riskstream_")}
    assert metrics - shown == set()
