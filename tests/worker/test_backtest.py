"""Policies over tracks: the path's own decisions, and figures that hand-made tracks can be checked by."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engines.engine import Engine
from schemas import news2_policy
from schemas.latch import Which
from schemas.messages import Alert, VitalsRecord
from schemas.model_config import AlertPolicy, Level, Policy
from schemas.news2_policy import News2Policy
from worker import (
    backtest,
    backtest_figures,
    backtest_grid,
    backtest_held_out,
    config,
    policies,
    recording,
    tracks,
)
from worker.backtest_figures import Cohort
from worker.backtest_grid import Axes, GridError, Rule
from worker.backtest_held_out import Did
from worker.backtest_source import Log, Outcome, Placed, Source
from worker.decode import Record
from worker.partition import Partition, Place
from worker.recording import Recording
from worker.rerun import Rerun
from worker.tracks import Rows, Tracks, TracksError

HOUR = 3_600_000
SETTINGS = config.load()
POLICY = Policy("1", (Level("elevated", 0.2, 3600.0), Level("high", 0.5)), 0.1, 7200.0, 3600.0, 0.15, 43200.0)


def again_later() -> list[VitalsRecord]:
    """Simulated patients, one of whom comes again after four silent days."""
    made = list(recording.read(recording.SIMULATE, recording.Choice(8, seed=3, hours=30)).open())
    first = made[0].patient
    shift = timedelta(days=4)
    again = [
        msgspec.structs.replace(record, time=record.time + shift, event_id=f"again-{number}")
        for number, record in enumerate(made)
        if record.patient == first
    ]
    return made + again


def source_of(records: Sequence[VitalsRecord], live_from: int = 0) -> Source:
    found = Recording(lambda: iter(records), len(records), 0, records[0].time, records[-1].time)
    placed = list(recording_places(found))

    async def read() -> AsyncIterator[Sequence[Record]]:
        for at in range(0, len(placed), 100):
            yield placed[at : at + 100]

    return Source("made up", "0", [Log(Place("c", "vitals", 0), read, live_from)], len(placed))


def recording_places(found: Recording) -> Iterator[Placed]:
    from worker import backtest_source

    return backtest_source.placed(found)


async def made(source: Source, engine: Engine) -> Tracks:
    news2 = news2_policy.load()
    return await tracks.make(source, {"vitals": engine}, str, news2, SETTINGS, lambda *_: None)


async def test_tracks_give_the_alerts_of_the_path(engine: Engine) -> None:
    records = again_later()
    source = source_of(records)
    rerun = Rerun(engine, policies.shipped(SETTINGS, engine.config), SETTINGS)
    partition = Partition(Place("c", "vitals", 0), 0, 0)
    alerts: Counter[tuple[str, str, str, int, str]] = Counter()
    try:
        async for chunk in source.logs[0].read():
            _, messages = await rerun.process(partition, chunk)
            for message in messages:
                if message.topic == SETTINGS.topic_alerts:
                    alert = msgspec.json.decode(message.value, type=Alert)
                    key = (alert.patient, alert.model.name, alert.episode.split("/")[-1])
                    alerts[(*key, alert.sequence, alert.transition)] += 1
    finally:
        await rerun.close()
    found = await made(source, engine)
    told: Counter[tuple[str, str, str, int, str]] = Counter()
    voices: list[tuple[Which, str, AlertPolicy]] = [
        ("risk", "vitals", engine.config.policy),
        ("news2", "news2", news2_policy.load()),
    ]
    single_enter = news2_policy.load().single_enter
    for which, name, policy in voices:
        for patient, scores in zip(found.patients, backtest.scores(found, which, single_enter), strict=True):
            for step, live in backtest.transitions(policy, scores):
                assert live
                told[patient, name, str(step.opened), step.sequence, step.transition] += 1
    assert told == alerts
    assert {key[1] for key in alerts} == {"vitals", "news2"}
    assert any(rows.anew.any() for rows in found.rows)


async def test_alerts_before_the_first_record_that_counts_are_not_counted(engine: Engine) -> None:
    records = again_later()
    whole, late = [await made(source_of(records, at), engine) for at in (0, len(records) // 2)]
    counts = [
        backtest.tally(engine.config.policy, backtest.scores(found, "risk")).transitions.sum()
        for found in (whole, late)
    ]
    assert 0 < counts[1] < counts[0]
    (again,) = (await made(source_of(records, len(records) - 1), engine)).patients
    assert again == records[-1].patient
    assert np.concatenate([rows.live for rows in late.rows]).sum() == len(records) - len(records) // 2


async def test_kept_tracks_come_back_only_for_the_same_records(engine: Engine, tmp_path: Path) -> None:
    found = await made(source_of(again_later()[:200]), engine)
    file = tmp_path / "tracks.npz"
    file.touch(mode=0o644)
    tracks.write(found, file, "one")
    again = tracks.load(file, "one")
    assert again is not None
    assert list(again.patients) == list(found.patients)
    for ours, theirs in zip(again.rows, found.rows, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert tracks.load(file, "other") is None
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(TracksError, match="no tracks file"):
        tracks.load(file, "one")


def test_what_tracks_depend_on_changes_their_identity() -> None:
    source, news2 = source_of(again_later()[:2]), news2_policy.load()

    def named(
        source: Source = source,
        digest: str = "a",
        backend: str = "x",
        news2: News2Policy = news2,
        settings: config.Settings = SETTINGS,
    ) -> str:
        return tracks.identity(source, {"vitals": digest}, news2, settings, [backend])

    names = {
        named(),
        named(digest="b"),
        named(replace(source, identity="1")),
        named(news2=msgspec.structs.replace(news2, scale=2)),
        named(settings=config.load(future_tolerance_s=1)),
        named(backend="y"),
    }
    assert len(names) == 6
    assert named(news2=msgspec.structs.replace(news2, resolve_s=1.0, single=None)) in names


def test_another_path_makes_other_tracks(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    code = tmp_path / "worker" / "decode.py"
    code.write_text("one")
    before = tracks.program(tmp_path)
    assert tracks.program(tmp_path) == before
    code.write_text("another")
    assert tracks.program(tmp_path) != before


def track(*risks: float) -> Rows:
    """Hourly risks of one patient, from 1970 on."""
    n = len(risks)
    zeros, no = np.zeros(n), np.zeros(n, bool)
    return Rows(
        np.arange(n), HOUR * np.arange(n), np.array(risks), zeros, zeros, no, no, no, np.ones(n, bool)
    )  # fmt: skip


FOUR = Tracks(
    ["a", "b", "c", "d"],
    [
        track(0.3, 0.3, 0.3, 0.3, 0.3),  # elevated from hour 1 on
        track(0.6, 0.05, 0.05, 0.05, 0.05),  # high at once, resolved at hour 3
        track(0.3, 0.15, 0.3, 0.15, 0.3),  # never for an hour
        track(0.05, math.nan, 0.05, 0.6, 0.6),  # high at hour 3
    ],
)
SEEN = backtest.scores(FOUR, "risk")


def test_a_tally_counts_what_a_policy_does() -> None:
    found = backtest.tally(POLICY, SEEN)
    assert found.transitions.tolist() == [[1, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0] * 5, [1, 0, 0, 0, 0]]
    never = backtest.NOT_YET
    assert found.first.tolist() == [[HOUR, never], [0, 0], [never, never], [3 * HOUR, 3 * HOUR]]
    assert (found.open_ms / HOUR).tolist() == [3, 3, 0, 1]


def test_news2_at_its_thresholds_is_without_the_rule_of_three_points_in_one_parameter() -> None:
    rows = track(0.0, 0.0, 0.0)._replace(low=np.array([3.0, 3.0, 7.0]), single=np.ones(3, dtype=bool))
    three = Tracks(["a"], [rows])
    firsts = [
        int(backtest.tally(policy, backtest.scores(three, "news2", policy.single_enter)).first[0, 0])
        for _, policy in backtest_grid.beside(news2_policy.load())
    ]
    assert firsts == [2 * HOUR, 2 * HOUR, HOUR]  # at 5, at 7, the policy, which has the rule and 30 minutes


def test_days_and_time_in_alert_are_without_the_silence_before_a_return() -> None:
    rows = track(0.3, 0.3, 0.3, 0.3, 0.05)
    far = rows.time + np.array([0, 0, 0, 1, 1]) * 30 * 24 * HOUR
    (patient,) = seen = backtest.scores(
        Tracks(["a"], [rows._replace(time=far, anew=np.arange(5) == 3)]), "risk"
    )
    assert patient.watched_ms == 3 * HOUR
    found = backtest.tally(POLICY, seen)
    assert found.transitions.tolist() == [[1, 0, 0, 0, 1]]
    assert found.open_ms.tolist() == [HOUR]  # raised at hour 1, the last record before the silence at hour 2


def cohort_of(**outcomes: Outcome) -> Cohort:
    return backtest_figures.cohort(FOUR.patients, SEEN, outcomes)


def test_figures_of_tracks_that_can_be_checked_by_hand() -> None:
    cohort = cohort_of(a=Outcome(True, 11 * HOUR), b=Outcome(False), c=Outcome(True), d=Outcome(False))
    found = backtest_figures.figures(POLICY, backtest.tally(POLICY, SEEN), cohort)
    assert found["alerts"] == {"raised": 3, "escalated": 0, "updated": 1, "resolved": 1, "expired": 0}
    days = 4 * 4 / 24
    assert found["alerts_per_patient_day"] == round(3 / days, 4)
    assert (found["recall"], found["survivors_alerted"], found["patients_alerted"]) == (0.5, 1.0, 0.75)
    assert found["ppv_patients"] == found["ppv_episodes"] == round(1 / 3, 4)
    assert found["time_in_alert"] == round(7 / 16, 4)
    assert found["hours_in_alert"] == 7 / 4
    assert found["hours_to_record_end"] == {"n": 1, "median": 3.0, "quartiles": [3.0, 3.0]}
    assert found["hours_to_outcome"] == {"n": 1, "median": 10.0, "quartiles": [10.0, 10.0]}
    assert found["levels"]["high"]["recall"] == 0.0
    assert found["levels"]["high"]["survivors_alerted"] == 1.0
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high, name


def test_an_alert_after_an_event_of_known_time_is_no_warning() -> None:
    for at, recall in ((0, 0.0), (2 * HOUR, 1.0)):
        cohort = cohort_of(a=Outcome(True, at, exact=True), b=Outcome(False))
        found = backtest_figures.figures(POLICY, backtest.tally(POLICY, SEEN), cohort)
        assert found["recall"] == recall


def test_a_time_of_a_survivor_hides_no_alert() -> None:
    cohort = cohort_of(a=Outcome(True), d=Outcome(False, HOUR, exact=True))
    found = backtest_figures.figures(POLICY, backtest.tally(POLICY, SEEN), cohort)
    assert found["survivors_alerted"] == 1.0
    assert found["ppv_patients"] == found["ppv_episodes"] == 0.5


def test_an_episode_after_an_event_of_known_time_is_no_hit() -> None:
    brief = msgspec.structs.replace(POLICY, levels=(Level("elevated", 0.2),), resolve_s=0.0, refractory_s=0.0)
    seen = backtest.scores(
        Tracks(["a", "b"], [track(0.3, 0.05, 0.3, 0.05, 0.3), track(0.3, 0.05, 0.05, 0.05, 0.05)]), "risk"
    )
    outcomes = {"a": Outcome(True, HOUR, exact=True), "b": Outcome(False)}
    cohort = backtest_figures.cohort(["a", "b"], seen, outcomes)
    found = backtest_figures.figures(brief, backtest.tally(brief, seen), cohort)
    assert found["alerts"]["raised"] == 4
    assert found["ppv_patients"] == found["ppv_episodes"] == 0.5


def test_without_outcomes_what_needs_them_is_none() -> None:
    cohort = cohort_of()
    found = backtest_figures.figures(POLICY, backtest.tally(POLICY, SEEN), cohort)
    needing = ("recall", "survivors_alerted", "ppv_patients", "ppv_episodes", "hours_to_outcome")
    assert [found[name] for name in needing] == [None] * 5
    assert found["alerts_per_patient_day"] > 0
    assert not cohort.judged


def test_more_of_anything_alerts_fewer() -> None:
    """Higher thresholds and longer persistence never alert on more patients."""
    rng = np.random.default_rng(4)
    many = Tracks([str(n) for n in range(40)], [track(*rng.uniform(0, 1, 30)) for _ in range(40)])
    seen = backtest.scores(many, "risk")
    base = msgspec.structs.replace(POLICY, levels=POLICY.levels[:1], exit=0.05)

    def alerted(enter: float, hours: float) -> int:
        levels = (Level("elevated", enter, 3600.0 * hours),)
        tally = backtest.tally(msgspec.structs.replace(base, levels=levels), seen)
        return int((tally.first[:, 0] != backtest.NOT_YET).sum())

    found = np.array([[alerted(enter, hours) for hours in (0, 1, 2, 4)] for enter in (0.2, 0.4, 0.6, 0.8)])
    assert (np.diff(found, axis=0) <= 0).all()
    assert (np.diff(found, axis=1) <= 0).all()
    assert found[0, 0] == 40


def test_a_grid_takes_every_combination_that_agrees_with_itself() -> None:
    found = backtest_grid.grid(POLICY, Axes([0.2, 0.5], [0.0, 3600.0], [0.7, 1.0]))
    assert [candidate.name for candidate in found] == [
        "0.2/0h, 0.5/0h, exit 0.14",
        "0.2/1h, 0.5/0h, exit 0.14",
        "0.5/0h, exit 0.35",
        "0.5/1h, exit 0.35",
    ]
    (only,) = backtest_grid.grid(POLICY, Axes([], [], [], [0.6], [1800.0]))
    assert only.policy == msgspec.structs.replace(
        POLICY, levels=(POLICY.levels[0], Level("high", 0.6, 1800.0))
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.1:0.2:0.05", [0.1, 0.15, 0.2]),
        ("0.1:0.22:0.05", [0.1, 0.15, 0.2]),
        ("0.3,0.1,0.1", [0.1, 0.3]),
        ("0.4", [0.4]),
    ],
)
def test_axes_are_spans_or_lists(text: str, found: list[float]) -> None:
    assert backtest_grid.numbers(text, "--enter", 0, 1) == found


@pytest.mark.parametrize("text", ["", "x", "1:2", "0.5:0.1:0.1", "0:1:0", "0.5,2", "0:1:1e-9", "nan", "-1"])
def test_other_axes_are_refused(text: str) -> None:
    with pytest.raises(GridError, match="--enter"):
        backtest_grid.numbers(text, "--enter", 0, 1)


def test_a_grid_has_bounds() -> None:
    with pytest.raises(GridError, match="more than 2,000"):
        backtest_grid.grid(POLICY, Axes([n / 1000 for n in range(900)], [0, 1, 2], [0.7]))
    with pytest.raises(GridError, match="agrees with itself"):
        backtest_grid.grid(POLICY, Axes([0.3], [0.0], [1.0]))


def test_a_file_of_policies_is_tried_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "policies.json"
    file.write_bytes(msgspec.json.encode([POLICY]))
    (found,) = backtest_grid.from_file(file)
    assert (found.role, found.policy) == ("file", POLICY)
    for content in (b"{}", b"[]", b"[{}]", msgspec.json.encode([msgspec.structs.replace(POLICY, exit=0.9)])):
        file.write_bytes(content)
        with pytest.raises(GridError, match="policies"):
            backtest_grid.from_file(file)


OPERATING = [
    {"recall": recall, "survivors_alerted": survivors, "alerts_per_patient_day": alerts}
    for recall, survivors, alerts in [(0.95, 0.6, 0.5), (0.91, 0.4, 0.3), (0.91, 0.4, 0.2), (0.8, 0.3, 0.4)]
]


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        (Rule(recall=0.9), 2),
        (Rule(recall=0.95), 0),
        (Rule(recall=0.96), None),
        (Rule(survivors=0.35), 3),
        (Rule(survivors=0.2), None),
        (Rule(alerts_per_day=0.3), 2),
        (Rule(alerts_per_day=9.0), 0),
    ],
)
def test_choosing_keeps_to_its_rule(rule: Rule, chosen: int | None) -> None:
    assert backtest_grid.choose(rule, OPERATING) == chosen


def test_the_front_is_what_nothing_beats() -> None:
    assert backtest_grid.front(OPERATING) == [3, 1, 0]


def test_held_out_figures_are_of_policies_chosen_without_those_they_are_judged_on() -> None:
    event = np.array([1.0, 1, 0, 0, 1, 1, 0, 0])
    cohort = Cohort(np.ones(8), np.zeros(8, np.int64), event, np.full(8, np.nan), np.zeros(8, dtype=np.bool_))
    fold = np.array([0] * 4 + [1] * 4)
    # The first policy is flawless in fold 0 and alerts on everybody in fold 1, the second the other way.
    flawless, everybody = event[:4] == 1, np.ones(4, dtype=np.bool_)
    pages = np.ones(8, dtype=np.int64)
    found = [
        Did(np.concatenate([flawless, everybody]), pages),
        Did(np.concatenate([everybody, flawless]), 2 * pages),
    ]
    result = backtest_held_out.judged(Rule(recall=0.9), ["one", "two"], found, cohort, fold)
    assert result == {
        "recall": 1.0,
        "survivors_alerted": 1.0,
        "alerts_per_patient_day": 1.5,
        "chosen": ["two", "one"],
    }
    assert backtest_held_out.judged(Rule(alerts_per_day=0.5), ["one", "two"], found, cohort, fold) is None
