"""Matching episodes by patient and time, with figures computed by hand."""

import pytest

from schemas.messages import ModelReference, Source
from tests.worker.records import HOUR, T0
from worker.history import Span
from worker.messages import moment
from worker.shadow_alerts import AlertHead, Alerts, Matched, leads, match, told

DIGEST = "ab" * 32


def head(
    transition: str,
    patient: str,
    opened: int,
    hours: float,
    raised: float | None = None,
    offset: int | None = None,
    model: str = "vitals",
) -> AlertHead:
    """An alert at so many hours, of an episode that the record at `opened` opened at `raised` hours."""
    offset = opened if offset is None else offset
    return AlertHead(
        f"{model}-{patient}-{opened}-{transition}-{hours}",
        f"cluster/vitals/0/{opened}",
        transition,  # type: ignore[arg-type]
        patient,
        moment(T0 + round(hours * HOUR)),
        moment(T0 + round((hours if raised is None else raised) * HOUR)),
        "2+unit.1",
        ModelReference(model, 1, DIGEST),
        "onnxruntime-cpu",
        Source("cluster", "vitals", 0, offset),
    )


def alerts(*heads: AlertHead, span: Span = Span(100, 200)) -> Alerts:  # noqa: B008 - immutable
    made = Alerts({0: span}, "vitals")
    for each in heads:
        made.add(each)
    return made


def matched(served: Alerts, shadow: Alerts) -> Matched:
    return match(served.episodes["model"], shadow.episodes["model"])


def test_episodes_that_overlap_are_one_wherever_each_was_opened() -> None:
    served = alerts(head("raised", "a", 120, 5), head("resolved", "a", 120, 9, 5, 150))
    shadow = alerts(head("raised", "a", 110, 3), head("resolved", "a", 110, 6, 3, 130))
    assert matched(served, shadow) == Matched(1, 0, 0, 0, [2 * HOUR])


def test_episodes_apart_or_of_different_patients_are_two() -> None:
    served = alerts(head("raised", "a", 120, 5), head("resolved", "a", 120, 9, 5, 150))
    later = alerts(head("raised", "a", 160, 10))
    other = alerts(head("raised", "b", 121, 5))
    assert matched(served, later) == Matched(0, 1, 1, 0, [])
    assert matched(served, other) == Matched(0, 1, 1, 0, [])


def test_an_open_episode_lasts() -> None:
    served, shadow = alerts(head("raised", "a", 120, 5)), alerts(head("raised", "a", 190, 40))
    assert matched(served, shadow) == Matched(1, 0, 0, 0, [-35 * HOUR])


def test_what_one_side_tells_in_two_episodes_is_a_pair_and_one_more() -> None:
    served = alerts(head("raised", "a", 120, 5))
    shadow = alerts(
        head("raised", "a", 120, 5),
        head("expired", "a", 120, 8, 5, 140),
        head("raised", "a", 160, 9),
        head("escalated", "a", 160, 10, 9, 161),
    )
    assert matched(served, shadow) == Matched(1, 0, 1, 0, [0])


def test_an_episode_from_before_the_stretch_answers_its_counterpart_and_counts_apart() -> None:
    served = alerts(head("raised", "a", 50, 1), head("updated", "a", 50, 4, 1, 120))
    shadow = alerts(head("raised", "a", 110, 3))
    assert matched(served, shadow) == Matched(0, 0, 0, 1, [])
    assert told(served, "model", 0.0)["transitions"] == {"updated": 1}


def test_an_episode_that_ended_before_the_stretch_is_forgotten() -> None:
    served = alerts(head("raised", "a", 50, 1), head("resolved", "a", 50, 2, 1, 60))
    assert matched(served, alerts(head("raised", "a", 110, 3))) == Matched(0, 0, 1, 0, [])


def test_alerts_are_counted_once_and_within_the_stretch() -> None:
    raised = head("raised", "a", 120, 5)
    found = alerts(
        raised,
        raised,
        head("escalated", "a", 120, 6, 5, 130),
        head("raised", "late", 200, 5),
        head("raised", "b", 121, 5, model="news2"),
        head("raised", "c", 121, 5, model="bedside"),
    )
    assert told(found, "model", 4.0) == {
        "transitions": {"escalated": 1, "raised": 1},
        "alerts_per_patient_day": 0.5,
        "raised_per_patient_day": 0.25,
    }
    assert told(found, "news2", 0.0)["alerts_per_patient_day"] is None
    assert found.seen.models == {(1, DIGEST): 2}
    assert found.seen.policies == {"2+unit.1": 2}


def test_leads_are_told_in_hours() -> None:
    assert leads([2 * HOUR, 0, -1 * HOUR, 6 * HOUR, 3 * HOUR]) == {
        "n": 5,
        "shadow_earlier": 3,
        "same": 1,
        "shadow_later": 1,
        "median": 2.0,
        "quartiles": [0.0, 3.0],
    }
    assert leads([]) is None


def test_an_episode_that_names_no_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        alerts(
            AlertHead(
                "x", "no/offset", "raised", "a", moment(T0), moment(T0), "1",
                ModelReference("vitals", 1, DIGEST), "x", Source("cluster", "vitals", 0, 120),
            )
        )  # fmt: skip
