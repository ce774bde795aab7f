"""docs/runbook.md has an entry for every metric, every alert rule and every reason, and for nothing else."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from engines.errors import IMAGE_REASONS
from worker import metrics

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
ALERTS = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
METRICS = {
    family.name + ("_total" if family.type == "counter" else "")
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.describe()
}
SOURCES = sorted(path for name in ("worker", "schemas") for path in (ROOT / name).glob("*.py"))


def section(title: str) -> str:
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found, f"docs/runbook.md has no section {title}"
    return found[1]


def entries(title: str) -> set[str]:
    """The names in the first column of a section's table; a row without a remedy is no entry."""
    rows = [line.strip("| ").split(" | ") for line in section(title).splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def letters(path: Path) -> Iterator[str]:
    """The reasons in a module: of refusals, rejections, raised schema errors and the state's faults."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and called(node) in {"Refusal", "Rejection"}:
            yield from texts(node.args[0])
        if isinstance(node, ast.Call):
            yield from (
                text for keyword in node.keywords if keyword.arg == "reason" for text in texts(keyword.value)
            )
        if path.name == "state.py" and isinstance(node, ast.Assign | ast.Return) and node.value is not None:
            yield from (text for text in texts(node.value) if re.fullmatch(r"[a-z]+(-[a-z]+)+", text))


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def texts(node: ast.expr) -> list[str]:
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def reasons_of_errors() -> set[str]:
    modules = [importlib.import_module(f"{package}.errors") for package in ("schemas", "engines", "worker")]
    classes = [member for module in modules for _, member in inspect.getmembers(module, inspect.isclass)]
    return {str(member.reason) for member in classes if hasattr(member, "reason")}


DEAD_LETTERS = {reason for path in SOURCES for reason in letters(path)} | {"unknown-unit"}
"""`unknown-unit` is the reason of every UnitError that names no other."""

CHECKPOINTS = {"commit"}
"""What `riskstream_checkpoint_failures_total` counts beside the reasons of errors."""


def test_reasons_are_found_where_they_are_given() -> None:
    assert {
        "empty",
        "duplicate-key",
        "implausible-time",
        "wrong-unit",
        "unknown-code",
        "too-late",
    } <= DEAD_LETTERS
    assert {"correction-out-of-reach", "inference-failed", "invalid-observation"} <= DEAD_LETTERS


def test_every_metric_has_an_entry() -> None:
    assert (
        entries("Metrics") & {name for name in entries("Metrics") if name.startswith("riskstream_")}
        == METRICS
    )


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_has_an_entry(name: str) -> None:
    found = re.search(rf"^### {name}$(.*?)(?=^###? |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found
    assert len(found[1].split()) > 20


def test_no_entry_is_of_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)) == ALERTS


def test_every_reason_of_a_dead_letter_has_an_entry() -> None:
    assert entries("Reasons of dead letters") == DEAD_LETTERS


def test_every_reason_of_an_error_has_an_entry() -> None:
    assert entries("Reasons of errors") == (reasons_of_errors() | CHECKPOINTS) - DEAD_LETTERS


def test_every_reason_of_a_picture_has_an_entry() -> None:
    assert entries("Reasons of pictures") == IMAGE_REASONS.keys()


def test_metrics_that_are_named_anywhere_exist() -> None:
    assert set(re.findall(r"riskstream_[a-z_]+", RUNBOOK)) <= METRICS
