"""The ward in memory: what scores and alerts make of it, in any order and twice."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import (
    Alert,
    AlertReference,
    BasisFinding,
    DismissalReason,
    FeedbackAction,
    FeedbackRecord,
    Finding,
    ModelName,
    ModelReference,
    Score,
    TrendPoint,
)
from tests.worker.ward import HOUR_MS, NOON_MS, PARTIAL, alert, at, score, vital, warning
from worker.board_rows import Detail, Row
from worker.board_ward import KEPT_CLOSED, KEPT_GONE, TREND_STEPS, Bounds, Ward, rank

BOUNDS = Bounds(24 * HOUR_MS, 168 * HOUR_MS, 100)


def ward(*messages: Score | Alert | Finding, bounds: Bounds = BOUNDS) -> Ward:
    """A ward that took messages, each published at its event time."""
    made = Ward(bounds)
    for message in messages:
        take(made, message)
    return made


def take(into: Ward, message: Score | Alert | Finding) -> None:
    timestamp = round(message.time.timestamp() * 1000)
    if isinstance(message, Score):
        into.score(message, timestamp)
    elif isinstance(message, Finding):
        into.finding(message, timestamp)
    else:
        into.alert(message, timestamp)


def rows(of: Ward) -> dict[str, Row]:
    return {row.patient: row for row in (msgspec.json.decode(one, type=Row) for one in of.rows())}


def detail(of: Ward, patient: str) -> Detail:
    found = of.detail(rows(of)[patient].key)
    assert found is not None
    return found


def test_a_score_shows_risk_news2_vitals_and_trend() -> None:
    row = rows(ward(score("p", 0.3, news2=PARTIAL, inputs=(vital("heart_rate", 90, -1),))))["p"]
    assert (row.rank, row.risk, row.uncertainty, row.risk_at) == (0, 0.3, 0.05, NOON_MS)
    assert (row.news2, row.news2_at) == (PARTIAL, NOON_MS)
    assert [(v.feature, v.value, v.at) for v in row.vitals] == [("heart_rate", 90, NOON_MS - HOUR_MS)]
    assert row.trend == [(NOON_MS, 0.3), (NOON_MS, 0.3)]


def test_the_unit_is_the_newest_messages() -> None:
    moved = ward(score("p", 0.3, 1, care_unit="ICU-2"), score("p", 0.3, 0, care_unit="ED"))
    assert rows(moved)["p"].care_unit == "ICU-2"
    take(moved, alert("p", hours=2, care_unit="ward <3>"))
    assert rows(moved)["p"].care_unit == "ward <3>"


def test_an_older_score_changes_nothing_that_is_shown() -> None:
    newest = score("p", 0.3, 1, 8)
    shown = rows(ward(newest))["p"]
    for older in (newest, score("p", 0.9, 1, 7), score("p", 0.9, 0.2, 9)):
        assert rows(ward(newest, older))["p"] == shown


def test_a_value_that_was_taken_back_does_not_stay() -> None:
    taken = ward(
        score("p", 0.3, 0, 1, inputs=(vital("heart_rate", 190, 0), vital("gcs", 15, 0))),
        score("p", 0.2, 1, 2, inputs=(vital("heart_rate", 90, -2),)),
    )
    assert [(v.feature, v.value) for v in rows(taken)["p"].vitals] == [("heart_rate", 90)]


def test_an_alert_alone_shows_the_patient_as_the_alert_knows_it() -> None:
    trend = (TrendPoint(at(-3), 0.2), TrendPoint(at(-1), 0.5))
    row = rows(ward(alert("p", trend=trend, news2=PARTIAL)))["p"]
    assert (row.rank, row.risk, row.uncertainty, row.news2) == (3, 0.61, 0.1, PARTIAL)
    assert [risk for _, risk in row.trend] == [0.2, 0.5, 0.61, 0.61]
    assert [v.feature for v in row.vitals] == ["heart_rate"]
    (episode,) = row.episodes
    assert (episode.by, episode.severity, episode.level, episode.threshold) == ("vitals", "high", 0.61, 0.51)
    assert [(r.feature, r.value, r.adds) for r in episode.why] == [
        ("lactate", 9.1, -0.4),
        ("heart_rate", 131.0, 0.21),
    ]


def test_an_alert_of_news2_shows_points_and_leaves_the_risk() -> None:
    row = rows(ward(score("p", 0.1), warning("p")))["p"]
    (episode,) = row.episodes
    assert (row.risk, row.rank, episode.by, episode.level) == (0.1, 2, "news2", 5.0)
    assert [(r.feature, r.value, r.adds) for r in episode.why] == [("heart_rate", None, 3)]


def test_an_alert_of_a_picture_moves_its_patient_up_and_leaves_the_line_alone() -> None:
    model = ModelReference("pneumonia", 2, "e" * 64)
    seen = BasisFinding("f-1", model, "pneumonia", at(-2), 3 * 3600.0, 0.95)
    pictured = alert("p", hours=1, model=model, risk=0.95, inputs=(), findings=(seen,), policy_version="1")
    row = rows(ward(score("p", 0.1, inputs=(vital("heart_rate", 80.0, 0),)), pictured))["p"]
    (episode,) = row.episodes
    assert (row.risk, row.rank, episode.by, episode.level) == (0.1, 3, "pneumonia", 0.95)
    assert ([v.feature for v in row.vitals], row.seen) == (["heart_rate"], NOON_MS)
    assert all(risk == 0.1 for _, risk in row.trend)
    assert rows(ward(pictured))["p"].risk is None


EPISODE = (
    alert("p"),
    alert("p", "escalated", 1, 1),
    alert("p", "updated", 2, 2),
    alert("p", "resolved", 3, 3),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_alerts_in_any_order_and_twice_leave_the_end(order: tuple[int, ...]) -> None:
    messages = [EPISODE[i] for i in order]
    shown = detail(ward(*messages, *messages), "p")
    assert (shown.alerts, shown.row.episodes, shown.row.rank) == ([], [], 0)
    assert [c.transition for c in shown.closed] == ["resolved"]


def test_an_early_expiry_ends_its_episode_once() -> None:
    expired = alert("p", "expired", 0, 13)
    shown = detail(ward(alert("p"), expired, expired, alert("p", "updated", 1, 2)), "p")
    assert (shown.alerts, [c.transition for c in shown.closed]) == ([], ["expired"])
    assert shown.row.seen == NOON_MS + 2 * HOUR_MS  # an expiry is no data of the patient's


def test_a_later_episode_opens_again_and_an_earlier_one_does_not() -> None:
    later = alert("p", hours=5, episode="c/vitals/0/90", raised_at=at(5))
    shown = detail(ward(*EPISODE, later, alert("p", "updated", 9, 6)), "p")
    assert [a.episode for a in shown.alerts] == ["c/vitals/0/90"]


def test_the_model_and_news2_have_an_episode_each_and_the_graver_ranks() -> None:
    shown = detail(ward(warning("p"), alert("p")), "p")
    assert [a.model.name for a in shown.alerts] == ["vitals", "news2"]
    assert shown.row.rank == 3


@pytest.mark.parametrize(
    ("severity", "place"), [("low", 1), ("elevated", 2), ("HIGH", 3), ("critical", 4), ("grue", 3)]
)
def test_an_unknown_severity_ranks_with_high(severity: str, place: int) -> None:
    assert rank(severity) == place


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 1)), max_size=200))
def test_a_trend_is_bounded_ordered_and_hides_no_peak(points: list[tuple[float, float]]) -> None:
    points.sort()
    taken = ward(*(score("p", risk, hours, n) for n, (hours, risk) in enumerate(points)))
    for row in rows(taken).values():
        newest = points[-1][0]
        assert len(row.trend) <= TREND_STEPS + 2
        assert [ms for ms, _ in row.trend] == sorted(ms for ms, _ in row.trend)
        recent = [risk for hours, risk in points if hours > newest - 23.4]
        assert max(risk for _, risk in row.trend) >= max(recent)


def test_a_patient_leaves_when_the_feed_has_gone_on_without_and_later_with_an_open_alert() -> None:
    taken = ward(score("gone", 0.1), alert("ill"), score("here", 0.1, 25))
    before = taken.version
    gone = rows(taken)["gone"].key
    taken.sweep()
    assert set(rows(taken)) == {"ill", "here"}
    changes = taken.since(before)
    assert changes is not None
    assert (changes.gone, taken.detail(gone)) == ([gone], None)
    take(taken, score("here", 0.1, 169))
    taken.sweep()
    assert set(rows(taken)) == {"here"}


def test_a_feed_that_stops_leaves_everybody() -> None:
    taken = ward(score("p", 0.1))
    taken.sweep()
    assert set(rows(taken)) == {"p"}
    Ward(BOUNDS).sweep()


def test_too_many_patients_lose_those_without_alerts_first() -> None:
    bounds = BOUNDS._replace(patients=2)
    taken = ward(alert("ill"), *(score(f"p{n}", 0.1, 1 + n) for n in range(3)), bounds=bounds)
    taken.sweep()
    assert (set(rows(taken)), taken.full) == ({"ill", "p2"}, True)
    taken.sweep()
    assert taken.full
    take(taken, score("p2", 0.1, 200))
    taken.sweep()
    taken.sweep()
    assert (set(rows(taken)), taken.full) == ({"p2"}, False)


def test_changes_are_those_since_a_version() -> None:
    taken = ward(score("a", 0.1), score("b", 0.1))
    version = taken.version
    take(taken, score("a", 0.2, 1, 1))
    changes = taken.since(version)
    assert changes is not None
    assert [msgspec.json.decode(row)["patient"] for row in changes.rows] == ["a"]
    nothing = taken.since(changes.version)
    assert nothing is not None
    assert (nothing.rows, nothing.gone) == ([], [])


def test_who_missed_too_many_departures_is_sent_everything() -> None:
    taken = ward(bounds=BOUNDS._replace(patients=1))
    for n in range(KEPT_GONE + 2):
        taken.score(score(f"p{n}", 0.1), NOON_MS + n)
    taken.sweep()
    assert (taken.since(0), len(rows(taken))) == (None, 1)
    assert taken.since(taken.version) is not None


def test_ended_episodes_are_bounded() -> None:
    ends = [
        alert("p", "resolved", 1, n, episode=f"c/vitals/0/{n}", raised_at=at(n))
        for n in range(KEPT_CLOSED + 5)
    ]
    assert len(detail(ward(*ends), "p").closed) == KEPT_CLOSED


def test_event_time_is_the_second_newest_patients() -> None:
    assert ward().event is None
    assert ward(score("only", 0.1)).event == (NOON_MS, NOON_MS)
    ahead = ward(score("a", 0.1), score("ahead", 0.1, 9000), score("b", 0.1, 1))
    assert ahead.event == (NOON_MS + HOUR_MS, NOON_MS + HOUR_MS)
    take(ahead, score("a", 0.1, 2))
    assert ahead.event == (NOON_MS + 2 * HOUR_MS, NOON_MS + 2 * HOUR_MS)


def said(of: Alert, action: FeedbackAction) -> FeedbackRecord:
    about = AlertReference(of.id, of.episode, of.sequence, of.transition, of.time, ModelName(of.model.name))
    reason: DismissalReason | None = "other" if action == "dismissed" else None
    return FeedbackRecord("f", of.patient, of.time, about, action, reason)


@pytest.mark.parametrize("first", ["alert", "feedback"])
def test_what_was_said_of_the_newest_alert_is_shown(first: str) -> None:
    """In any order, because alerts and feedback are read from two topics."""
    raised, updated = alert("p"), alert("p", "updated", 1, 1)
    of = ward() if first == "feedback" else ward(raised)
    of.feedback(said(raised, "acknowledged"))
    if first == "feedback":
        assert not of.rows()
        take(of, raised)
    version = of.version

    assert [one.said for one in rows(of)["p"].episodes] == ["acknowledged"]
    of.feedback(said(raised, "dismissed"))
    changes = of.since(version)
    assert changes is not None
    assert len(changes.rows) == 1
    assert detail(of, "p").row.episodes[0].said == "dismissed"
    take(of, updated)
    assert rows(of)["p"].episodes[0].said is None


def test_what_was_said_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.board_ward.KEPT_SAID", 2)
    of = ward(*(alert(f"p{n}") for n in range(3)))
    for n in range(3):
        of.feedback(said(alert(f"p{n}"), "confirmed"))

    assert [rows(of)[f"p{n}"].episodes[0].said for n in range(3)] == [None, "confirmed", "confirmed"]
