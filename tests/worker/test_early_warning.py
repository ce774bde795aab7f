"""NEWS2 beside the model: what is served is what the charts say, of any window, and it alerts by itself."""

import asyncio
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import Engine
from schemas import news2
from schemas.features import CHANNEL, FEATURES
from schemas.messages import Alert
from tests.worker.records import HOUR, MINUTE, NEWS2, T0, LocalPath, Record, observation, record, worsening
from worker.early_warning import INPUTS, assess, points
from worker.plan import Plan

WELL: dict[str, float] = {
    "respiratory_rate": 16,
    "oxygen_saturation": 97,
    "fio2": 21,
    "systolic_pressure": 120,
    "heart_rate": 70,
    "gcs": 15,
    "temperature": 37.0,
}
ILL = WELL | {"respiratory_rate": 26, "heart_rate": 115, "oxygen_saturation": 93}


def at(offset: int, minute: int, **values: float) -> Record:
    return record(
        offset, "p", T0 + minute * MINUTE, *(observation(name, value) for name, value in values.items())
    )


def told(alerts: list[Alert]) -> list[tuple[str, str, float | None]]:
    return [(alert.transition, alert.severity, alert.points) for alert in alerts]


def random_records(seed: int, count: int = 40) -> list[Record]:
    """Of one patient: some of the inputs at a time, out of order, over three days."""
    rng = random.Random(seed)
    made, minute = [], 0
    for n in range(count):
        minute += rng.choice([0, 1, 20, 60, 300])
        values = {}
        for name in rng.sample(INPUTS, rng.randint(1, 5)):
            feature = FEATURES[CHANNEL[name]]
            values[name] = round(rng.uniform(feature.low, feature.high), 1)
        if rng.random() < 0.2:
            values["lactate"] = 2.0
        made.append(at(n, max(minute - rng.choice([0, 0, 0, 90]), 0), **values))
    return made


class Watched(LocalPath):
    """A path whose plans are looked at."""

    async def seen(self, records: list[Record]) -> list[tuple[Plan, int]]:
        found: list[tuple[Plan, int]] = []
        for one in records:
            change = await self.pipeline.process(self.partition, [one])
            found += [(plan, i) for plan in (change.plan, change.beside) for i in range(len(plan.scored))]
        return found


def newest_of(records: list[Record]) -> tuple[dict[str, tuple[float, float]], int]:
    """The newest value of each input and its age in s, from the messages alone; and now, ms."""
    latest: dict[str, tuple[int, int, float]] = {}
    by_code = {FEATURES[CHANNEL[name]].loinc[0]: name for name in INPUTS}
    now = max(one.timestamp for one in records)
    for one in records:
        content: dict[str, Any] = msgspec.json.decode(one.value or b"")
        for measured in content["observations"]:
            name = by_code.get(measured["code"])
            if name is not None:
                # Of one time the greatest event id stands.
                order = (one.timestamp, content["event_id"])
                if name not in latest or order >= latest[name][:2]:
                    latest[name] = (*order, measured["value"])
    first_bin = now // HOUR - 47
    return {
        name: (value, (now - time) / 1000)
        for name, (time, _, value) in latest.items()
        if time // HOUR >= first_bin
    }, now


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("seed", range(6))
async def test_what_is_served_is_what_the_charts_say(engine: Engine, seed: int, scale: news2.Scale) -> None:
    """Over arrays, in alerts, and from the messages alone: one NEWS2, at every record."""
    policy = msgspec.structs.replace(NEWS2, scale=scale)
    records = random_records(seed)
    rows = await Watched(engine).seen(records)
    assert len(rows) == len(records)
    for n, (plan, i) in enumerate(rows):
        newest, _ = newest_of(records[: n + 1])
        exact = {name: (float(np.float32(value)), age) for name, (value, age) in newest.items()}
        total = news2.news2(news2.observed(exact, policy.fresh_s), scale)
        held = news2.news2(news2.observed(exact, 48 * 3600), scale)
        served, arrays = assess(policy, plan, i), points(policy, plan)

        assert (served.news2.low, served.news2.high, served.news2.parts) == (
            total.low, total.high, total.parts
        )  # fmt: skip
        assert served.news2.response == news2.response(total)
        assert set(served.news2.missing) | set(served.news2.stale) == set(total.missing)
        assert set(served.news2.missing) == set(held.missing)
        assert arrays.alerting[i] == max(total.low, 5 if total.single else 0)
        assert arrays.holding[i] == max(held.low, 5 if held.single else 0)
        assert arrays.holding[i] >= arrays.alerting[i]
        seen = news2.observed(exact, policy.fresh_s)
        for bedside, reference in ((served.qsofa, news2.qsofa(seen)), (served.mews, news2.mews(seen))):
            assert (bedside.low, bedside.high, bedside.missing) == (
                reference.low, reference.high, reference.missing
            )  # fmt: skip


@given(st.sets(st.sampled_from(sorted(WELL)), min_size=1, max_size=6))
def test_a_partial_set_is_never_normal(engine: Engine, names: set[str]) -> None:
    path = LocalPath(engine)
    one = at(0, 0, **{name: WELL[name] for name in sorted(names)})
    change = asyncio.run(path.pipeline.process(path.partition, [one]))
    (plan,) = [plan for plan in (change.plan, change.beside) if plan.scored]
    warning = assess(NEWS2, plan, 0).news2

    assert (warning.low, warning.complete, warning.response) == (0, False, "unknown")
    assert warning.high > 0


async def test_a_medium_score_must_last_and_a_high_one_need_not(engine: Engine) -> None:
    path = LocalPath(engine)
    medium = WELL | {"respiratory_rate": 22, "heart_rate": 115, "oxygen_saturation": 95}
    await path.process([at(0, 0, **medium), at(1, 29, **medium)])
    assert told(path.outbox.warnings) == []
    await path.process([at(2, 30, **medium), at(3, 31, **(ILL | {"gcs": 14}))])
    assert told(path.outbox.warnings) == [("raised", "medium", 5), ("escalated", "high", 10)]
    (first, _) = path.outbox.warnings
    assert first.risk is None
    assert first.news2 is not None
    assert (first.threshold, first.news2.low, first.news2.response) == (5, 5, "medium")
    assert (first.model.name, first.policy_version, first.backend) == ("news2", "1", "charts")
    assert {given.feature for given in first.inputs} == set(WELL)


async def test_three_points_in_one_parameter_call_for_medium(engine: Engine) -> None:
    path = LocalPath(engine)
    confused = WELL | {"gcs": 14}
    await path.process([at(0, 0, **confused), at(1, 60, **confused)])
    (alert,) = path.outbox.warnings
    assert (alert.severity, alert.points) == ("medium", 5)
    assert alert.news2 is not None
    assert (alert.news2.low, alert.news2.single) == (3, ("consciousness",))


async def test_values_that_grow_old_end_no_episode(engine: Engine) -> None:
    """Laboratory values alone come for a day: nothing is known to be better. Then it is known."""
    path = LocalPath(engine)
    stale = [at(1 + n, (n + 1) * 60, lactate=2.0) for n in range(24)]
    await path.process([at(0, 0, **ILL), *stale])
    assert told(path.outbox.warnings)[0] == ("raised", "high", 7)
    assert {transition for transition, *_ in told(path.outbox.warnings)} == {"raised", "updated"}
    assert path.partition.patients["p"].latches["news2"].trace is not None

    await path.process([at(30 + n, (25 + n) * 60, **WELL) for n in range(4)])
    assert told(path.outbox.warnings)[-1][0] == "resolved"


async def test_silence_expires_both_latches_each_by_its_own_name(engine: Engine) -> None:
    path = LocalPath(engine)
    await path.process([at(0, 0, **ILL), at(1, 13 * 60, **WELL)])
    assert [alert.transition for alert in path.outbox.warnings] == ["raised", "expired"]
    expired = path.outbox.warnings[1]
    assert (expired.points, expired.news2, expired.inputs) == (7, None, ())
    assert len({alert.id for alert in path.outbox.warnings}) == 2


async def test_records_that_the_model_does_not_read_are_stored_and_judged_all_the_same(
    engine: Engine,
) -> None:
    path = LocalPath(engine)
    path.model.channels = frozenset({CHANNEL["lactate"]})
    fates = await path.process([at(0, 0, **ILL), at(1, 1, lactate=4.0), at(2, 2, heart_rate=120)])

    assert fates == ["stored", "scored", "stored"]
    assert [score.source.offset for score in path.outbox.scores] == [1]
    assert told(path.outbox.warnings) == [("raised", "high", 7)]


async def test_the_models_alerts_carry_news2_of_the_same_record(engine: Engine) -> None:
    path = LocalPath(engine)
    records = worsening("p", 0, 12)
    await path.process(records)
    assert path.outbox.alerts
    for alert in path.outbox.alerts:
        upto = [one for one in records if one.offset <= alert.source.offset]
        newest, _ = newest_of(upto)
        total = news2.news2(news2.observed(newest, NEWS2.fresh_s))
        assert alert.news2 is not None
        assert alert.qsofa is not None
        assert alert.mews is not None
        assert (alert.news2.low, alert.news2.high) == (total.low, total.high)
        assert alert.points is None
        assert alert.risk is not None
