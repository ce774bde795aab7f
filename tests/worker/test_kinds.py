"""Every kind of series model takes the same path, and what is served of it is what is judged."""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from engines.engine import F32, Engine
from engines.errors import KindError
from engines.explain import contributions
from engines.steps import SeriesModel, run_stays
from schemas.messages import Alert, ForecastPoint
from schemas.window import WINDOW_BINS, Rows, rows
from tests.kinds import AHEAD, FEATURES, SERIES, engine_of
from tests.worker.records import HOUR, MINUTE, PLACE, T0, LocalPath, Record, observation, record, worsening
from worker.errors import EngineDownError
from worker.partition import Partition
from worker.patient import Patient


@pytest.fixture(scope="module", params=SERIES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = engine_of(request.param)
    yield engine
    engine.close()


def mixed(hours: int = 60) -> list[Record]:
    """Three patients who decline at other times, by turns; late values, and hours without any."""
    made: list[Record] = []
    for n, patient in enumerate("abc"):
        made += worsening(patient, 0, hours, T0 + n * 7 * MINUTE)
    for hour in range(3, hours, 5):
        late = record(0, "a", T0 + hour * HOUR - 2 * HOUR, observation("lactate", 2 + hour / 10))
        made.append(late._replace(timestamp=T0 + hour * HOUR + MINUTE))
    kept = [one for one in made if (one.timestamp // HOUR) % 11 or one.key != b"b"]
    return [
        one._replace(
            offset=n, value=json.dumps(json.loads(one.value or b"") | {"event_id": f"e{n}"}).encode()
        )
        for n, one in enumerate(sorted(kept, key=lambda one: one.timestamp))
    ]


def window_of(patient: Patient) -> Rows:
    """Rows of the patient's window as it is, float32[bins, channels]."""
    slots = np.arange(patient.start, patient.open + 1) % WINDOW_BINS
    cells = patient.cells
    return rows(cells.values[slots], cells.counts[slots].astype(np.float32), patient.statics)


def offline_risk(engine: Engine, patient: Patient) -> float:
    window = window_of(patient)
    return float(run_stays(engine, Rows(*(array[None] for array in window))).risk[0, -1])


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_change_no_byte(engine: Engine, chunk: int) -> None:
    whole, cut = LocalPath(engine), LocalPath(engine)
    whole.process_now(mixed())
    cut.process_now(mixed(), chunk)

    assert {alert.transition for alert in whole.outbox.alerts} >= {"raised", "updated"}
    assert cut.outbox.by_voice() == whole.outbox.by_voice()
    assert cut.outbox.of("risk-scores") == whole.outbox.of("risk-scores")


def test_a_patient_alone_gets_the_same_bytes(engine: Engine) -> None:
    records = mixed()
    together, alone = LocalPath(engine), LocalPath(engine)
    together.process_now(records)
    alone.process_now([one for one in records if one.key == b"b"])

    for topic in ("risk-alerts", "risk-scores"):
        of_b = [message for message in together.outbox.of(topic) if message.key == b"b"]
        assert of_b == alone.outbox.of(topic)


@pytest.mark.parametrize("hours", [1, 2, 30, 47, 48, 49, 60])
def test_what_is_served_is_what_is_judged(engine: Engine, hours: int) -> None:
    path = LocalPath(engine)
    path.process_now(mixed(hours))

    scores = {score.patient: score.risk for score in path.outbox.scores}
    for key, patient in path.partition.patients.items():
        assert scores[key] == pytest.approx(offline_risk(engine, patient), abs=1e-6)


def test_a_rebuild_gives_the_same(engine: Engine) -> None:
    """Replayed in silence up to some record, the path goes on with the same scores, explained alike."""
    records, half = mixed(), 90
    straight, rebuilt = LocalPath(engine), LocalPath(engine)
    straight.process_now(records)
    rebuilt.partition.live_from = half
    rebuilt.process_now(records[:half])
    assert not rebuilt.outbox.messages
    rebuilt.process_now(records[half:])

    for topic in ("risk-alerts", "risk-scores"):
        assert rebuilt.outbox.of(topic) == [
            m for m in straight.outbox.of(topic) if offset_of(m.value) >= half
        ]


def offset_of(value: bytes) -> int:
    """The source offset of an alert or a score."""
    import msgspec

    found: int = msgspec.json.decode(value)["source"]["offset"]
    return found


def test_contributions_equal_the_slow_reference(engine: Engine) -> None:
    records = mixed()
    path = LocalPath(engine)
    path.process_now(records)
    alerts = [alert for alert in path.outbox.alerts if alert.transition != "expired"]
    assert len(alerts) >= 5

    for alert in alerts:
        before = LocalPath(engine)
        before.process_now(records[: alert.source.offset + 1])
        window = window_of(before.partition.patients[alert.patient])
        expected = dict(zip(engine.config.features, contributions(engine, window), strict=True))
        told = {given.feature: given.contribution for given in alert.inputs}
        assert told.keys() == {name for name, value in expected.items() if np.isfinite(value)}
        for name, value in told.items():
            assert value == pytest.approx(float(expected[name]), abs=2e-6)
    assert any(given.contribution for alert in alerts for given in alert.inputs)


def test_what_raises_the_risk_has_a_contribution_above_zero(engine: Engine) -> None:
    path = LocalPath(engine)
    path.process_now(worsening("p", 0, 12))
    last = path.outbox.alerts[-1]
    told = {given.feature: given.contribution or 0.0 for given in last.inputs if given.age_s is not None}
    assert told["lactate"] > 0
    assert told["lactate"] == max(told.values())


def test_a_row_that_cannot_be_explained_has_no_contribution(engine: Engine) -> None:
    """The engine fails where the newest lactate is ordinary: the alert goes out without that contribution."""

    class HalfBlind(LocalPath):
        async def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
            outputs = await super().run(inputs)
            newest = inputs["values"].reshape(len(outputs["risk"]), -1, len(FEATURES))[:, -1]
            outputs["risk"][newest[:, FEATURES.index("lactate")] == np.float32(1.9)] = np.nan
            return outputs

    blind, seeing = HalfBlind(engine), LocalPath(engine)
    records = worsening("p", 0, 12)
    seeing.process_now(records)
    blind.process_now(records)
    assert [alert.id for alert in blind.outbox.alerts] == [alert.id for alert in seeing.outbox.alerts]
    for alert in blind.outbox.alerts:
        told = {given.feature: given.contribution for given in alert.inputs}
        assert told["lactate"] is None
        assert told["heart_rate"] is not None


def test_an_engine_that_is_down_delays_the_explanation_and_changes_nothing(engine: Engine) -> None:
    class Failing(LocalPath):
        calls, fails_at = 0, 0

        async def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
            self.calls += 1
            if self.calls == self.fails_at:
                raise EngineDownError("down")
            return await super().run(inputs)

    failing, sound = Failing(engine), LocalPath(engine)
    records = worsening("p", 0, 6)
    sound.process_now(records)
    for fails_at in (1, 2, 3, 5):
        failing.calls, failing.fails_at = 0, fails_at
        failing.process_now(records)
        if failing.partition.unanswered is not None:  # as a lane does once the engine answers
            warned = failing.partition.position
            failing.partition = Partition(PLACE, 0, 0)
            failing.partition.warned = warned
            failing.fails_at = 0
            failing.process_now(records)

        assert sound.outbox.alerts
        assert failing.outbox.by_voice() == sound.outbox.by_voice()
        failing.outbox.messages.clear()
        failing.partition = Partition(PLACE, 0, 0)


def test_spread_and_forecast_are_carried_where_the_model_has_them(engine: Engine) -> None:
    path = LocalPath(engine)
    path.process_now([*worsening("p", 0, 8), record(8, "q", T0 + 9 * HOUR, observation("heart_rate", 88))])
    score = next(score for score in path.outbox.scores if score.patient == "q")
    alert = path.outbox.alerts[0]
    if not engine.config.forecast:
        assert (score.uncertainty, alert.uncertainty, alert.forecast) == (None, None, ())
        return
    assert score.uncertainty == pytest.approx(score.risk / 10, abs=1e-6)
    assert alert.risk is not None
    assert alert.uncertainty == pytest.approx(alert.risk / 10, abs=1e-6)
    last = {given.feature: given.value for given in alert.inputs}
    assert alert.forecast == tuple(
        ForecastPoint(name, round(last[name], 3), unit, 3600.0, last[name])
        for name, unit in zip(AHEAD, ("/min", "mm[Hg]"), strict=True)
    )


def test_what_was_never_measured_is_not_forecast() -> None:
    engine = engine_of("step")
    path = LocalPath(engine)
    path.process_now(
        [
            record(n, "p", T0 + n * HOUR, observation("lactate", 12), observation("heart_rate", 170))
            for n in range(4)
        ]
    )
    alerts: list[Alert] = path.outbox.alerts
    assert [point.feature for point in alerts[0].forecast] == ["heart_rate"]
    engine.close()


def test_an_image_model_is_refused() -> None:
    engine = engine_of("image")
    with pytest.raises(KindError, match="small reads images; a windowed-series or features model is needed"):
        SeriesModel(engine.config)
    engine.close()
