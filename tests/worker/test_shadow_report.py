"""The comparison over logs at hand: what it reads, what it leaves out, what it says when there is nothing."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from engines import repository
from schemas.messages import ModelReference, Score, Source
from tests.shadowing import VERSION, two_versions
from tests.worker.records import HOUR, T0, LocalPath, Record
from tests.worker.shelf import course, mixed
from tests.worker.test_shadow_alerts import head
from worker import config
from worker.cluster import Cluster
from worker.errors import FatalError
from worker.history import Span
from worker.messages import moment
from worker.partition import Place
from worker.shadow_report import Comparison, Order, _period

MODEL = "vitals"
ENCODE = msgspec.json.encode


class Topics:
    """Topics of one partition each, in the place of Kafka's."""

    def __init__(self, **topics: Sequence[bytes | Record]) -> None:
        self.topics = {
            name.replace("_", "-"): [*map(_record, range(len(t)), t)] for name, t in topics.items()
        }

    @property
    def cluster(self) -> Cluster:
        return Cluster("cluster", dict.fromkeys(self.topics, 1), "vitals")

    async def span(self, topic: str, partition: int) -> Span:
        return Span(0, len(self.topics[topic]))

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        return next((r.offset for r in self.topics[topic] if r.timestamp >= time_ms), None)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Any]]:
        found = self.topics[topic][start:end]
        for at in range(0, len(found), 50):
            yield found[at : at + 50]


def _record(offset: int, content: bytes | Record) -> Record:
    return content if isinstance(content, Record) else Record(offset, T0, b"k", content)


def score(
    offset: int, risk: float, version: int = 1, hours: float = 0.0, patient: str = "p", topic: str = "vitals"
) -> bytes:
    time = moment(T0 + round(hours * HOUR))
    return ENCODE(Score(patient, time, risk, MODEL, version, Source("cluster", topic, 0, offset)))


async def report(topics: Topics, order: Order = Order(), **more: Any) -> dict[str, Any]:  # noqa: B008
    settings = config.load(**more)
    period = {0: Span(0, 1 << 40)}
    if order.within.since is not None or order.within.until is not None:
        period = await _period(topics, settings, topics.cluster, order.within)
    comparison = Comparison(topics, settings, topics.cluster, topics.cluster, period, lambda *_: None)
    return await comparison.compare(order)


async def test_patient_days_are_those_of_the_common_stretch() -> None:
    # The shadow has watched p for 12 h and q for 6 h where both score; p's silence of 60 h is no time.
    found = await report(
        Topics(
            risk_scores=[score(n, 0.1) for n in range(2, 8)],
            shadow_scores=[
                score(0, 0.2, 2, hours=-40),
                score(2, 0.2, 2, hours=0),
                score(3, 0.2, 2, hours=8, patient="q"),
                score(4, 0.2, 2, hours=12),
                score(5, 0.2, 2, hours=14, patient="q"),
                score(6, 0.2, 2, hours=72),
                score(6, 0.2, 2, hours=72),
                score(9, 0.2, 2, hours=84),
            ],
            risk_alerts=[ENCODE(head("raised", "p", 4, 12))],
            shadow_alerts=[],
        )
    )
    assert (found["alerts"]["patients"], found["alerts"]["patient_days"]) == (2, 0.75)
    assert found["alerts"]["model"]["served"]["alerts_per_patient_day"] == 1.3333
    assert found["scores"]["compared"] == 5
    assert (found["scores"]["only_served"], found["scores"]["outside_served"]) == (1, 0)
    assert (found["scores"]["only_shadow"], found["scores"]["outside_shadow"]) == (0, 2)


async def test_scores_of_other_inputs_and_records_that_are_none_are_counted_apart() -> None:
    found = await report(
        Topics(
            risk_scores=[score(1, 0.1), score(1, 0.5, topic="other"), b"{", b"\xff"],
            shadow_scores=[score(1, 0.3, 2)],
            risk_alerts=[
                b"no alert",
                ENCODE(replace(head("raised", "p", 1, 1), episode="x/y")),
            ],
            shadow_alerts=[],
        )
    )
    assert found["scores"]["difference"]["mean"] == 0.2
    assert found["served"]["scores_elsewhere"] == 1
    assert found["unreadable"] == 4
    assert "4 records could not be read, and are left out" in found["notes"]


async def test_without_served_scores_alerts_alone_are_compared() -> None:
    found = await report(
        Topics(
            risk_scores=[],
            shadow_scores=[score(n, 0.3, 2, hours=n) for n in range(1, 25)],
            risk_alerts=[ENCODE(head("raised", "p", 4, 4)), ENCODE(head("raised", "p", 40, 40))],
            shadow_alerts=[ENCODE(replace(head("raised", "p", 2, 2), model=reference(2)))],
        )
    )
    assert found["scores"] is None
    assert "alerts alone" in found["notes"][0]
    assert "RISKSTREAM_PUBLISH_SCORES" in found["notes"][0]
    assert found["alerts"]["model"]["episodes"]["both"] == 1
    assert found["alerts"]["model"]["lead_hours"]["median"] == 2.0
    assert found["alerts"]["patient_days"] == 0.96


def reference(version: int) -> ModelReference:
    return ModelReference(MODEL, version, f"{version}" * 64)


async def test_of_several_shadows_one_must_be_named() -> None:
    topics = Topics(
        risk_scores=[score(1, 0.1)],
        shadow_scores=[score(1, 0.2, 2), score(1, 0.4, 3)],
        risk_alerts=[],
        shadow_alerts=[
            ENCODE(replace(head("raised", "p", 1, 1), model=reference(version), id=str(version)))
            for version in (2, 3)
        ],
    )
    with pytest.raises(FatalError, match="versions 2, 3; name one with --version"):
        await report(topics)
    found = await report(topics, Order(3))
    assert found["shadow"]["version"] == 3
    assert found["scores"]["difference"]["mean"] == 0.3
    assert [model["version"] for model in found["shadow"]["models"]] == [3]
    assert found["shadow"]["scores_by_version"] == {"2": 1, "3": 1}


@pytest.mark.parametrize(
    ("served", "shadows", "order", "said"),
    [
        (
            [score(1, 0.1)],
            [],
            Order(),
            "shadow-scores holds no score of vitals and of the input",
        ),
        ([score(1, 0.1)], [score(1, 0.1, 2)], Order(5), "version 5 of vitals .* it holds the versions 2"),
        ([score(1, 0.1)], [score(2, 0.1, 2)], Order(), "no input record has both .* partition 0: 1 to 1"),
        ([score(1, 0.1)], [score(1, 0.1, 2, topic="x")], Order(), "1 are of other models or inputs"),
    ],
)
async def test_where_there_is_nothing_to_compare_it_says_why(
    served: list[bytes], shadows: list[bytes], order: Order, said: str
) -> None:
    topics = Topics(risk_scores=served, shadow_scores=shadows, risk_alerts=[], shadow_alerts=[])
    with pytest.raises(FatalError, match=said):
        await report(topics, order)


async def test_the_period_is_that_of_the_input_records() -> None:
    from worker.published import Range

    vitals = [Record(n, T0 + n * HOUR, b"k", b"{}") for n in range(10)]
    topics = Topics(
        vitals=vitals,
        risk_scores=[score(n, 0.1) for n in range(10)],
        shadow_scores=[score(n, 0.1 * n, 2) for n in range(10)],
        risk_alerts=[],
        shadow_alerts=[],
    )
    found = await report(topics, Order(within=Range(T0 + 3 * HOUR, T0 + 5 * HOUR)))
    assert found["scores"]["compared"] == 2
    assert found["scores"]["difference"]["max_absolute"] == 0.3
    assert found["input"]["from"] == "2026-01-01T03:00:00+00:00"


async def test_a_served_version_that_was_the_shadow_is_noted_and_an_unknown_one_has_no_levels() -> None:
    topics = Topics(
        risk_scores=[score(1, 0.1), score(2, 0.2, 2)],
        shadow_scores=[score(1, 0.2, 2), score(2, 0.2, 2)],
        risk_alerts=[],
        shadow_alerts=[],
    )
    found = await report(topics)
    assert "version 2 was served too: 1 served scores are its own" in found["notes"]
    assert any("levels of the shadow policy are not known: no version 2" in note for note in found["notes"])
    assert {level["policy"] for level in found["scores"]["decisions"]} == {"served"}


PATIENTS = ("canary-one", "canary-two", "canary-three")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A report of what two versions really say of three patients."""
    import asyncio

    folder = two_versions(tmp_path_factory.mktemp("models"))
    ill = [min(hour / 10, 1.0) for hour in range(30)]
    records = mixed(*(course(name, 0, T0 + i * HOUR, ill[i:] + ill[::-1]) for i, name in enumerate(PATIENTS)))
    said = {}
    for version in (1, VERSION):
        engine = repository.load(folder, MODEL, version=version)
        path = LocalPath(engine, Place("cluster", "vitals", 0))
        path.process_now(records)
        said[version] = {
            topic: [m.value for m in path.outbox.of(topic)] for topic in ("risk-scores", "risk-alerts")
        }
        engine.close()
    both = Topics(
        risk_scores=said[1]["risk-scores"],
        risk_alerts=said[1]["risk-alerts"],
        shadow_scores=said[VERSION]["risk-scores"],
        shadow_alerts=said[VERSION]["risk-alerts"],
    )
    return asyncio.run(report(both, model_repository=folder))


def test_a_report_of_two_versions(content: dict[str, Any]) -> None:
    scores, alerts = content["scores"], content["alerts"]
    assert scores["compared"] > 100
    assert (scores["only_served"], scores["only_shadow"]) == (0, 0)
    assert 0 < scores["difference"]["mean_absolute"] <= scores["difference"]["max_absolute"]
    assert {level["policy"] for level in scores["decisions"]} == {"served", "shadow"}
    for level in scores["decisions"]:
        counted = sum(level[name] for name in ("both", "only_served", "only_shadow", "neither"))
        assert counted == scores["compared"]
    assert alerts["patients"] == len(PATIENTS)
    assert alerts["model"]["served"]["transitions"]["raised"] > 0
    assert alerts["news2"]["served"] == alerts["news2"]["shadow"]
    assert alerts["news2"]["episodes"]["only_served"] == alerts["news2"]["episodes"]["only_shadow"] == 0
    assert content["shadow"]["policy_versions"].keys() == {"shadow-1"}
    assert content["served"]["models"][0]["digest"] != content["shadow"]["models"][0]["digest"]


def test_the_page_is_whole_in_itself_and_names_nobody(content: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="pages need the extra `report`")
    pytest.importorskip("jinja2", reason="pages need the extra `report`")
    from engines import report_shadow

    page = report_shadow.page(content)
    text = json.dumps(content)
    for patient in PATIENTS:
        assert patient not in page
        assert patient not in text
    assert page.count("<svg") == 1
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert len(page) < 500_000
    for words in ("as a shadow", f"{content['scores']['compared']:,}", "served: high", "shadow: elevated"):
        assert words in page
    assert page == report_shadow.page(json.loads(text))


def test_a_page_of_alerts_alone(content: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="pages need the extra `report`")
    pytest.importorskip("jinja2", reason="pages need the extra `report`")
    from engines import report_shadow

    page = report_shadow.page({**content, "scores": None, "notes": ["alerts alone <b>"]})
    assert "<svg" not in page
    assert "alerts alone &lt;b&gt;" in page


def test_a_report_is_shown_to_people(content: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from worker.cli_shadow import _print

    _print(content)
    shown = capsys.readouterr().out
    assert f"{content['scores']['compared']:,} records compared" in shown
    assert not [patient for patient in PATIENTS if patient in shown]
    _print({**content, "scores": None, "notes": ["alerts alone [red]"]})
    assert "alerts alone [red]" in capsys.readouterr().out


def test_the_repository_of_these_tests_is_a_good_one(tmp_path: Path) -> None:
    folder = two_versions(tmp_path)
    assert repository.versions(folder, MODEL) == [1, VERSION]
    assert repository.read_config(folder, MODEL).version == 1
