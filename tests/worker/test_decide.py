"""Risks -> transitions: tables of exact transitions, and what holds for any risks."""

from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.latch import Latch, Quiet
from schemas.model_config import Level, Policy
from worker.decide import TREND_MS, Step, decide, expire, fitted

MINUTE = 60_000

POLICY = Policy(
    version="t",
    levels=(Level("elevated", 0.3, 600.0), Level("high", 0.6, 300.0), Level("extreme", 0.9)),
    exit=0.2,
    resolve_s=1200.0,
    refractory_s=1800.0,
    update_delta=0.15,
    expiry_s=7200.0,
)


class Outcome(NamedTuple):
    latch: Latch
    steps: list[Step]


def run(scores: list[tuple[int, float]], latch: Latch | None = None, first: int = 0) -> Outcome:
    """Decide over (minute, risk), the n-th at offset first + n."""
    latch = latch or Latch()
    steps: list[Step] = []
    for offset, (minute, risk) in enumerate(scores, first):
        latch, more = decide(POLICY, latch, minute * MINUTE, risk, offset)
        steps += more
    return Outcome(latch, steps)


def shown(steps: list[Step]) -> list[tuple[str, int, int]]:
    """(transition, minute, level)."""
    return [(s.transition, s.time // MINUTE, s.episode.level) for s in steps]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param([(0, 0.4), (9, 0.4)], [], id="not long enough"),
        pytest.param([(0, 0.4), (10, 0.4)], [("raised", 10, 0)], id="persistent"),
        pytest.param([(0, 0.3), (10, 0.3)], [("raised", 10, 0)], id="threshold is inclusive"),
        pytest.param([(0, 0.4), (5, 0.29), (10, 0.4)], [], id="interrupted"),
        pytest.param([(0, 0.95)], [("raised", 0, 2)], id="no persistence asked"),
        pytest.param(
            [(0, 0.4), (10, 0.4), (12, 0.7), (17, 0.7)],
            [("raised", 10, 0), ("escalated", 17, 1)],
            id="escalates in the refractory time",
        ),
        pytest.param(
            [(0, 0.95), (10, 0.7), (31, 0.7)], [("raised", 0, 2), ("updated", 31, 2)], id="never downwards"
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (20, 0.1), (39, 0.1), (40, 0.1)],
            [("raised", 10, 0), ("resolved", 40, 0)],
            id="resolves after the refractory time",
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (40, 0.25), (100, 0.25)],
            [("raised", 10, 0), ("updated", 40, 0)],
            id="between exit and entry it stays",
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (50, 0.2), (90, 0.2)],
            [("raised", 10, 0), ("updated", 50, 0)],
            id="exit is exclusive",
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (20, 0.1), (40, 0.1), (41, 0.4), (51, 0.4), (70, 0.4)],
            [("raised", 10, 0), ("resolved", 40, 0), ("raised", 70, 0)],
            id="refractory after resolving",
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (20, 0.1), (40, 0.1), (41, 0.95)],
            [("raised", 10, 0), ("resolved", 40, 0), ("raised", 41, 2)],
            id="worse breaks through",
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (130, 0.4)], [("raised", 10, 0)], id="at the expiry it is not over"
        ),
        pytest.param(
            [(0, 0.4), (10, 0.4), (131, 0.4), (141, 0.4)],
            [("raised", 10, 0), ("expired", 130, 0), ("raised", 141, 0)],
            id="expires, then all is new",
        ),
    ],
)
def test_transitions(scores: list[tuple[int, float]], expected: list[tuple[str, int, int]]) -> None:
    assert shown(run(scores).steps) == expected


_gaps = st.one_of(st.integers(0, 12), st.integers(0, 180))
_scores = st.lists(st.tuples(_gaps, st.integers(0, 20).map(lambda n: n / 20)), max_size=60).map(
    lambda pairs: [(sum(gap for gap, _ in pairs[: i + 1]), risk) for i, (_, risk) in enumerate(pairs)]
)


@given(_scores)
def test_an_episode_is_told_in_order(scores: list[tuple[int, float]]) -> None:
    """Raised first, counted up, upwards only, one at a time, quiet in its refractory time."""
    quiet_ms = round(POLICY.refractory_s * 1000)
    last: Step | None = None
    for step in run(scores).steps:
        episode = step.episode
        if step.transition == "raised":
            assert last is None or not last.episode.active
            assert (episode.sequence, episode.raised) == (0, step.time)
        else:
            assert last is not None
            assert last.episode.active
            assert (episode.opened, episode.raised) == (last.episode.opened, last.episode.raised)
            assert episode.sequence == last.episode.sequence + 1
            assert episode.level >= last.episode.level
            assert (episode.level > last.episode.level) == (step.transition == "escalated")
        assert episode.active == (step.transition not in {"resolved", "expired"})
        if last is not None and last.transition != "expired" and step.time < last.time + quiet_ms:
            assert step.transition in {"escalated", "expired"} or episode.level > last.episode.level
        last = step


@given(_scores, st.lists(st.integers(1, 4), min_size=60, max_size=60))
def test_persistence_counts_time_not_scores(scores: list[tuple[int, float]], copies: list[int]) -> None:
    repeated = [score for score, n in zip(scores, copies, strict=False) for _ in range(n)]

    assert shown(run(repeated).steps) == shown(run(scores).steps)


@given(_scores, st.integers(0, 20))
def test_higher_risks_never_alert_later(scores: list[tuple[int, float]], more: int) -> None:
    higher = [(minute, min(risk + more / 20, 1.0)) for minute, risk in scores]
    steps = run(scores).steps
    if steps:
        assert run(higher).steps[0].time <= steps[0].time


@given(_scores)
def test_trace_depends_on_a_bounded_stretch(scores: list[tuple[int, float]]) -> None:
    """What a rebuild rests on: a memory's length, across one silence that is too short to expire."""
    whole = run(scores).latch.trace
    if whole is None:
        return
    stretch_ms = max(round((POLICY.memory_s + POLICY.expiry_s) * 1000), TREND_MS + 60 * MINUTE)
    first = next(i for i, (minute, _) in enumerate(scores) if minute * MINUTE >= whole.time - stretch_ms)

    assert run(scores[first:], first=first).latch.trace == whole


@given(_scores, st.integers(0, 59))
def test_where_a_stream_is_cut_changes_nothing(scores: list[tuple[int, float]], at: int) -> None:
    head = run(scores[:at])
    tail = run(scores[at:], head.latch, first=len(scores[:at]))

    assert (tail.latch, head.steps + tail.steps) == run(scores)


@given(_scores, st.integers(0, 400))
def test_timer_tells_what_the_next_record_would(scores: list[tuple[int, float]], after: int) -> None:
    latch = run(scores).latch
    if latch.trace is None:
        return
    now = latch.trace.time + after * MINUTE
    _, early = expire(POLICY, latch, now)
    _, steps = decide(POLICY, latch, now, 0.0, 999)

    assert ([early] if early else []) == [s for s in steps if s.transition == "expired"]


def test_latch_of_a_policy_with_more_levels_still_decides() -> None:
    latch = run([(0, 0.4), (10, 0.95)]).latch
    fewer = Policy("u", POLICY.levels[:1], 0.2, 1200.0, 1800.0, 0.15, 7200.0)

    adapted = fitted(fewer, latch)
    latch, steps = decide(fewer, adapted, 60 * MINUTE, 0.4, 9)

    assert [s.transition for s in steps] == ["updated"]
    assert latch.episode is not None
    assert latch.episode.level == 0
    assert fitted(POLICY, run([(0, 0.4)]).latch) == run([(0, 0.4)]).latch


@pytest.mark.parametrize("dismissed", [None, False, True])
def test_a_changed_policy_hides_no_escalation(*, dismissed: bool | None) -> None:
    """Told is `low` of three levels; of the two that are left, each is worse, and each is told."""
    three = (Level("low", 0.05), Level("mid", 0.3), Level("high", 0.6))
    before = Policy("t", three, 0.01, 0.0, 0.0, 1.0, 72_000.0)
    after = Policy("u", three[1:], 0.01, 0.0, 0.0, 1.0, 72_000.0)
    latch, steps = decide(before, Latch(), 0, 0.1, 0)
    assert [step.episode.severity for step in steps] == ["low"]
    if dismissed is not None:
        latch = latch._replace(quiet=Quiet(0, 0, dismissed))

    told = []
    for offset, risk in enumerate((0.1, 0.4, 0.4, 0.7, 0.7), 1):
        latch, steps = decide(after, latch, offset * MINUTE, risk, offset)
        told += [(offset, s.transition, s.episode.severity, s.episode.threshold) for s in steps]

    assert told == [(2, "escalated", "mid", 0.3), (4, "escalated", "high", 0.6)]


def test_what_was_told_of_a_worse_severity_is_not_told_again_as_a_milder_one() -> None:
    latch = run([(0, 0.95)]).latch
    fewer = Policy("u", POLICY.levels[:1], 0.2, 1200.0, 1800.0, 0.15, 7200.0)
    steps: list[Step] = []
    for minute in range(1, 60):
        latch, more = decide(fewer, latch, minute * MINUTE, 0.95, minute)
        steps += more

    assert steps == []
    assert latch.episode is not None
    assert latch.episode.severity == "extreme"


SEEN = [(0, 0.95)]
"""An episode of the highest level, alerted at risk 0.95; its refractory time ends at minute 30."""


@pytest.mark.parametrize(
    ("quiet", "scores", "expected"),
    [
        pytest.param(None, [(31, 0.7)], [("updated", 31, 2)], id="nobody has said anything"),
        pytest.param(Quiet(0, 0, False), [(31, 0.7), (90, 0.5)], [], id="better is not told"),
        pytest.param(Quiet(0, 0, True), [(31, 0.7), (90, 0.5)], [], id="dismissed: nor here"),
        pytest.param(Quiet(0, 1, False), [(31, 0.7)], [("updated", 31, 2)], id="of another alert"),
        pytest.param(Quiet(7, 0, False), [(31, 0.7)], [("updated", 31, 2)], id="of another episode"),
        pytest.param(
            Quiet(0, 0, True), [(31, 0.1), (60, 0.1)], [("resolved", 60, 2)], id="that it ends is told"
        ),
    ],
)
def test_what_was_said_keeps_an_episode_quiet(
    quiet: Quiet | None, scores: list[tuple[int, float]], expected: list[tuple[str, int, int]]
) -> None:
    latch = run(SEEN).latch._replace(quiet=quiet)

    assert shown(run(scores, latch, first=1).steps) == expected


@pytest.mark.parametrize(
    ("dismissed", "expected"),
    [(False, ["updated", "escalated"]), (True, ["escalated"])],
    ids=["acknowledged", "dismissed"],
)
def test_a_quiet_episode_speaks_again_when_it_is_worse(dismissed: bool, expected: list[str]) -> None:
    """Acknowledged: by as much as updates ask for. Dismissed: in a higher severity alone."""
    raised = run([(0, 0.35), (10, 0.35)])
    latch = raised.latch._replace(quiet=Quiet(1, 0, dismissed))

    worse = run([(41, 0.45), (45, 0.55), (50, 0.7), (55, 0.7)], latch, first=2)

    assert [step.transition for step in raised.steps] == ["raised"]
    assert [step.transition for step in worse.steps] == expected


def test_a_dismissal_at_the_highest_severity_does_not_silence_what_gets_worse() -> None:
    only = msgspec.structs.replace(POLICY, levels=(Level("high", 0.3),))
    latch, _ = decide(only, Latch(), 0, 0.4, 0)
    latch = latch._replace(quiet=Quiet(0, 0, True))

    latch, better = decide(only, latch, 31 * MINUTE, 0.25, 1)
    _, worse = decide(only, latch, 32 * MINUTE, 0.56, 2)

    assert [step.transition for step in (*better, *worse)] == ["updated"]


def test_after_a_worsening_an_alert_needs_its_own_acknowledgement() -> None:
    latch = run([(0, 0.35), (10, 0.35)]).latch._replace(quiet=Quiet(1, 0, False))

    steps = run([(41, 0.55), (80, 0.36)], latch, first=2).steps

    assert [step.transition for step in steps] == ["updated", "updated"]


@given(_scores, st.integers(0, 59), st.booleans())
def test_what_was_said_never_adds_an_alert(scores: list[tuple[int, float]], at: int, dismissed: bool) -> None:
    """Nor does it hide that an episode began, escalated or ended, as long as nothing was left out before."""
    head = run(scores[:at])
    episode = head.latch.episode
    if episode is None:
        return
    quiet = head.latch._replace(quiet=Quiet(episode.opened, episode.sequence, dismissed))

    said = run(scores[at:], quiet, first=at).steps
    unsaid = run(scores[at:], head.latch, first=at).steps

    assert len(said) <= len(unsaid)
    if said and unsaid and said[0].time == unsaid[0].time:
        assert said[0].transition == unsaid[0].transition
