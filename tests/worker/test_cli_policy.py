"""`riskstream policy`, typed: what it takes, what it refuses, what it warns of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from worker import embedded
from worker.cli import app


@pytest.fixture(scope="module")
def broker() -> Iterator[embedded.Server]:
    with embedded.tansu() as server:
        yield server


def typed(*words: str, broker: embedded.Server | None = None) -> Result:
    environment = {"RISKSTREAM_CREATE_TOPICS": "true", "RISKSTREAM_PARTITIONS": "1"}
    if broker is not None:
        environment |= {"RISKSTREAM_BROKER": broker.address, "RISKSTREAM_KAFKA_IDEMPOTENCE": "false"}
    return CliRunner(env=environment).invoke(app, ["policy", *words])


def file(folder: Path, *changes: dict[str, Any]) -> str:
    path = folder / "changes.json"
    path.write_text(json.dumps(changes))
    return str(path)


def change(**fields: Any) -> dict[str, Any]:
    return {"model": "vitals", "version": 1, "effective_from": "2026-03-01T00:00:00Z", **fields}


def test_a_file_is_checked_and_cautioned_about(tmp_path: Path) -> None:
    deaf = change(model="news2", levels=[{"severity": "high", "enter": 15}], exit=10, single=None)

    result = typed("check", file(tmp_path, change(update_delta=0.2, patient="p-1"), deaf), "--json")

    assert result.exit_code == 0
    assert [one["model"] for one in json.loads(result.stdout)] == ["vitals", "news2"]
    assert "look again: news2, everyone, version 1: no severity alerts at 7 points" in result.stderr


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scale": 2}, "change 0: scale is for model `news2` alone"),
        ({"resolve_s": 50_000}, "may be 43200 s at most"),
        ({"surprise": 1}, "there is a field that is not known"),
    ],
)
def test_a_file_that_cannot_be_used_ends_in_one_line(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    result = typed("check", file(tmp_path, change(**fields)))

    assert result.exit_code == 1
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_versions_are_published_once_in_order_and_listed(tmp_path: Path, broker: embedded.Server) -> None:
    assert "the policies that ship are in force for everyone" in typed("list", broker=broker).output
    first = change(update_delta=0.2, patient="p-1")
    assert "published 1 of 1" in typed("publish", file(tmp_path, first), broker=broker).output
    assert "published 0 of 1" in typed("publish", file(tmp_path, first), broker=broker).output

    other = typed("publish", file(tmp_path, {**first, "update_delta": 0.3}), broker=broker)
    assert other.exit_code == 1
    assert "published already with another content" in other.stderr
    early = change(version=2, patient="p-1", effective_from="2026-02-01T00:00:00Z")
    refused = typed("publish", file(tmp_path, early), broker=broker)
    assert refused.exit_code == 1
    assert "would take effect before an earlier version" in refused.stderr

    listed = typed("list", "--json", broker=broker)
    assert [one["patient"] for one in json.loads(listed.stdout)] == ["p-1"]
    at = ("--patient", "p-1", "--at", "2026-03-02")
    in_force = json.loads(typed("list", *at, broker=broker).stdout)
    assert in_force["risk"]["update_delta"] == 0.2
    assert in_force["risk"]["version"].endswith("+patient.1")


def test_a_list_cuts_no_id_and_no_time_short(
    tmp_path: Path, broker: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = change(patient="MRN-0004123456789-" + "7" * 40, update_delta=0.2, reason="asked for by the ward")
    typed("publish", file(tmp_path, named), broker=broker)
    monkeypatch.setenv("COLUMNS", "80")

    listed = typed("list", broker=broker).output

    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in listed.splitlines() if "│" in line]
    whose = "".join(cells[row][1] for row in range(len(cells)))
    assert named["patient"] in whose
    assert "…" not in listed
    assert max(len(line) for line in listed.splitlines()) <= 80
