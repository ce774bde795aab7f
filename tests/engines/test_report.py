"""The page: whole in itself, safe from what it shows, the same from the same evaluation."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="pages need the extra `report`")
pytest.importorskip("jinja2", reason="pages need the extra `report`")

from engines import evaluate, judge, report, report_charts
from engines.baselines import Baseline
from engines.forecasts import Forecasts
from engines.report_parts import difference, number, signed, with_interval
from engines.robustness import Probe
from schemas.features import CHANNEL
from tests.engines.test_assess import NAMES, made_rows, risks_of
from worker.cli_model import app

STAYS = 120
HOSTILE = "<script>alert('x')</script> & $\\frac{1}{0}$ \"quoted\""


@pytest.fixture(scope="module")
def stays_evaluation() -> dict[str, Any]:
    stays = made_rows(STAYS)
    died = (np.random.default_rng(1).random(STAYS) < 0.3).astype(float)
    risks = risks_of(died, 1.0, seed=2)
    baselines = {
        "logistic": Baseline(risks_of(died, 0.5, seed=3).astype(np.float32), probability=True),
        "news2": Baseline(np.round(10 * risks_of(died, 0.2, seed=4)).astype(np.float32), probability=False),
    }
    content = evaluate.assess(
        stays,
        died,
        risks,
        0.4,
        features=NAMES,
        baselines=baselines,
        thresholds=evaluate.best_thresholds(died, baselines),
        forecasts=Forecasts(("heart_rate",), stays.values[..., [CHANNEL["heart_rate"]]] + 1),
        probe=Probe(lambda changed: changed.values[..., 5] / 200, np.arange(STAYS), "all of them"),
        resamples=20,
    )
    about = {
        "model": {"name": "tiny", "version": 1, "digest": "ab" * 32, "outcome": HOSTILE},
        "backend": "onnxruntime-cpu",
        "data": {"name": "made up", "stays": STAYS, "judged": STAYS, "digest": "cd" * 32},
        "method": "made up",
        "policy": {HOSTILE: {"enter": 0.2, "recall": 0.5, "precision": 0.4, "survivors_alerted": 0.3}},
        "reproduce": evaluate.reproduction("riskstream model evaluate tiny --data physionet2012:PATH"),
        "expected": {"48": {"auroc": 0.8, "auprc": 0.5, "event1": 0.4, "ece": 0.01}},
    }
    return about | content


@pytest.fixture(scope="module")
def image_evaluation() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    truth = (rng.random(200) < 0.6).astype(int)
    risk = 1 / (1 + np.exp(-rng.normal(4 * truth - 2, 1.5)))
    judged = judge.judged(truth, risk, 0.5, resamples=20)
    return {
        "kind": "image",
        "model": {"name": "tiny", "version": 1, "digest": "ab" * 32},
        "data": {"source": "made up", "images": 200, "judged": 200},
        "threshold": 0.5,
        "judged": judged,
        "findings": [HOSTILE],
        "classes": {"normal": None, HOSTILE: judged},
        "class_accuracy": 0.9,
        "confusion": {"normal": {"normal": 70, HOSTILE: 10}, HOSTILE: {"normal": 12, HOSTILE: 108}},
        "subgroups": [{"by": "group", "group": "1", "n": 200, "positives": 120, "judged": judged}],
        "robustness": [{"disturbance": "noise", "judged": judged}],
        "activation": {"images": 20, "rank_correlation": 0.6, "rank_correlation_interval": [0.5, 0.7]},
        "validation": judged,
        "drift": {"brightness_ks": 0.1, "auroc": {"train": 0.9, "validation": 0.8}},
        "tried": [{"recipe": HOSTILE, "part": 0, "this": judged, "served": judged}],
        "examples": [{"png": base64.b64encode(b"\x89PNG").decode(), "caption": HOSTILE}],
        "metrics": judge.FIGURES,
    }


CARD = {
    "regulation": "45 CFR 170.315(b)(11)(iv)(B)",
    "source_attributes": [
        {
            "number": "(1)(i)", "category": "Details", "name": "Name", "available": True, "text": HOSTILE,
        },
        {
            "number": "(1)(ii)", "category": "Details", "name": "Funding", "available": False,
            "text": "Nothing is recorded.",
        },
    ],
    "variables": [{"number": "(A)(10)", "variable": "sex", "used": True, "text": "as recorded"}],
    "informed_by": ["cross-validation"],
    "tried": [f"wider: {HOSTILE}"],
    "attribution": ["made up"],
}  # fmt: skip


class Page(HTMLParser):
    """What a page loads and links, its ids, headings and words, and whether its elements close in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.charts: list[str] = []
        self.open: list[str] = []
        self.cells: list[int] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        assert not any(key.startswith("on") for key in given), "an event handler"
        if tag == "svg":
            self.charts.append(given.get("aria-label") or "")
        if tag == "tr":
            self.cells.append(0)
        if tag in ("td", "th"):
            self.cells[-1] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module", params=["stays", "images"])
def text(request: pytest.FixtureRequest) -> str:
    name = "stays_evaluation" if request.param == "stays" else "image_evaluation"
    return report.page(request.getfixturevalue(name), CARD)


def test_a_page_is_whole_in_itself(text: str) -> None:
    page = Page(text)
    assert not page.open
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.loads)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(text.encode()) < 1_000_000
    targets = {link.removeprefix("#") for link in page.loads if link.startswith("#")}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_what_is_hostile_is_shown_as_text(text: str) -> None:
    assert "<script" not in text
    assert "<script>alert('x')</script>" in Page(text).words


def test_a_page_has_every_section(text: str) -> None:
    wanted = ["figures", "discrimination", "calibration", "decision", "subgroups", "robustness"]
    wanted += ["tried", "card", "variables", "reproduce", "definitions"]
    stays = ["verdict", "time", "baselines", "forecast", "policy"]
    ids = set(Page(text).ids)
    assert set(wanted) <= ids
    assert set(stays if "forecast" in ids else ["classes", "maps", "drift", "recipes"]) <= ids
    assert text.index(report.WARNING) < text.index('id="figures"')


def test_charts_and_tables_can_be_read_aloud(text: str) -> None:
    page = Page(text)
    assert len(page.charts) >= 6
    assert all(len(label) > 20 for label in page.charts)
    assert text.count("<table") == text.count("<caption>")
    for table in re.findall(r"<table.*?</table>", text, flags=re.DOTALL):
        assert len(set(Page(table).cells)) == 1, "rows of different lengths"
        assert table.count('scope="col"') > 1


def test_colours_are_left_to_the_page(text: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    colours = set(re.findall(r"#[0-9a-f]{6}\b", charts))
    assert not colours & {*report_charts.COLOURS, report_charts.INK, report_charts.FAINT}
    assert "var(--blue)" in charts


def test_the_same_evaluation_gives_the_same_page(stays_evaluation: dict[str, Any]) -> None:
    assert report.page(stays_evaluation, CARD) == report.page(stays_evaluation, CARD)


def test_parts_that_are_missing_are_left_out(stays_evaluation: dict[str, Any]) -> None:
    needed = {key: stays_evaluation[key] for key in ("hours", "event1_threshold")}
    ids = set(Page(report.page(needed)).ids)
    assert {"figures", "decision"} <= ids
    assert not {"baselines", "subgroups", "robustness", "forecast", "card", "verdict"} & ids


def test_the_page_is_drawn_by_the_command(stays_evaluation: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "vitals"
    folder.mkdir()
    shipped = Path(evaluate.__file__).parent / "models/vitals/config.json"
    (folder / "config.json").write_bytes(shipped.read_bytes())
    (folder / "evaluation.json").write_bytes(evaluate.pretty(stays_evaluation))
    page = tmp_path / "out" / "page.html"
    arguments = ["report", "vitals", "--html", str(page), "--repository", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert page.read_text() == report.page(stays_evaluation)
    (folder / "evaluation.json").write_text('{"hours": {"48": {}}}')
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "another version wrote it" in refused.stderr


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_the_error_names_it(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from worker.cli_model import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, ["evaluate", "--help"]).exit_code == 0
result = CliRunner().invoke(app, ["evaluate", "vitals", "--data", "physionet2012:/", "--html", "/dev/null"])
assert result.exit_code == 1, result.output
assert "pip install 'riskstream[report]'" in result.stderr, result.stderr
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numbers_as_text() -> None:
    assert number(None) == "–"
    assert number(0.12345) == "0.123"
    assert signed(-0.0001) == "0.000"
    assert signed(0.02) == "+0.020"
    assert difference([-0.02, -0.03, 0.001]) == "−0.020 (−0.030 to +0.001)"
    judged = {"auroc": 0.8, "intervals": {"auroc": [0.7, 0.9]}}
    assert with_interval(judged, "auroc") == "0.800 (0.700–0.900)"
    assert with_interval(judged, "ece") == "–"


def test_wilson_holds_the_share() -> None:
    low, high = report_charts.wilson(np.array([0.0, 0.5, 1.0]), np.array([10, 100, 10]))
    assert low == pytest.approx([0, 0.4038, 0.7225], abs=1e-3)
    assert high == pytest.approx([0.2775, 0.5962, 1], abs=1e-3)
