"""Streaming computes what training computed: golden.npz keeps the training network's risks."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from engines import repository, steps
from engines.engine import F32, Engine
from engines.errors import InputError, KindError
from engines.steps import SeriesModel, columns, fingerprint, run_stays, run_steps
from schemas.features import FEATURES
from schemas.model_config import Batching
from schemas.window import Rows, whole
from tests.kinds import engine_of, model_of

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = repository.load(repository.SHIPPED, "vitals")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def golden() -> dict[str, F32]:
    return repository.read_golden(repository.SHIPPED / "vitals/1/golden.npz")


def stays_of(golden: dict[str, F32]) -> Rows:
    return Rows(*(golden[f"stay/{name}"] for name in Rows._fields))


def test_steps_equal_the_training_network(engine: Engine, golden: dict[str, F32]) -> None:
    risks = run_steps(engine, stays_of(golden))
    assert risks.shape == (4, 48)
    np.testing.assert_allclose(risks, golden["stay/risk"], atol=TOLERANCE, rtol=0)


def test_stays_do_not_touch_one_another(engine: Engine, golden: dict[str, F32]) -> None:
    stays = stays_of(golden)
    together = run_steps(engine, stays)
    alone = [run_steps(engine, Rows(*(array[i : i + 1] for array in stays)))[0] for i in range(4)]
    assert together.tobytes() == np.stack(alone).tobytes()


def test_large_cohorts_are_cut_into_batches(engine: Engine, golden: dict[str, F32]) -> None:
    stays = Rows(*(np.tile(array[:, :2], (150, 1, 1)) for array in stays_of(golden)))
    told: list[int] = []
    risks = run_steps(engine, stays, told.append)
    assert told == [512, 88]
    assert risks.tobytes() == np.tile(risks[:4], (150, 1)).tobytes()


def test_columns_and_state_follow_the_config(engine: Engine) -> None:
    model = SeriesModel(engine.config)
    assert columns(engine.config).tolist() == list(range(len(FEATURES)))
    states = np.arange(3 * model.width, dtype=np.float32).reshape(3, -1)
    rows = Rows(*(np.zeros((3, len(FEATURES)), np.float32) for _ in Rows._fields))
    tensors = model.inputs(rows, states)
    assert {name: array.shape for name, array in tensors.items()} == {
        name: (3, *dims) for name, dims in engine.input_dims.items()
    }
    outputs = {pair.output: tensors[pair.input] for pair in engine.config.state}
    assert model.states(outputs).tobytes() == states.tobytes()


def test_risks_are_probabilities_that_depend_on_the_patient(golden: dict[str, F32]) -> None:
    risks = golden["stay/risk"]
    assert risks.min() > 0
    assert risks.max() < 1
    assert np.ptp(risks[:, -1]) > 0.01


@pytest.mark.parametrize("kind", ["whole", "features"])
def test_every_hour_is_what_the_model_says_of_that_hour_alone(kind: str, golden: dict[str, F32]) -> None:
    engine, stays = engine_of(kind), stays_of(golden)
    model = SeriesModel(engine.config)
    risks = run_stays(engine, stays).risk
    for hour in (0, 1, 30, 47):
        steps = Rows(*(array[:, : hour + 1] for array in stays))
        read = whole(steps) if kind == "whole" else Rows(*(array[:, -1] for array in steps))
        alone = engine.run(model.inputs(model.chosen(read), np.zeros((4, 0), np.float32)))["risk"]
        assert risks[:, hour].tobytes() == alone.tobytes()
    engine.close()


def test_a_prediction_has_what_the_model_gives(engine: Engine, golden: dict[str, F32]) -> None:
    few = Rows(*(array[:, :3] for array in stays_of(golden)))
    small = engine_of("step")
    prediction = run_stays(small, few)
    assert prediction.spread is not None
    assert prediction.forecast is not None
    assert (prediction.spread.shape, prediction.forecast.shape) == ((4, 3), (4, 3, 2))
    np.testing.assert_allclose(prediction.spread, prediction.risk / 10, rtol=1e-5)
    assert run_stays(small, few).risk.tobytes() == run_steps(small, few).tobytes()
    small.close()


def test_windows_longer_than_a_whole_one_are_refused(golden: dict[str, F32]) -> None:
    engine = engine_of("whole")
    long = Rows(*(np.concatenate([array, array], axis=1) for array in stays_of(golden)))
    with pytest.raises(InputError, match="small reads windows of 48 steps, came 96"):
        run_stays(engine, long)
    engine.close()


def test_images_are_no_stays(golden: dict[str, F32]) -> None:
    engine = engine_of("image")
    with pytest.raises(KindError, match="small reads images"):
        run_stays(engine, stays_of(golden))
    engine.close()


def test_a_fingerprint_is_of_what_a_state_means_and_of_nothing_else() -> None:
    config = model_of("step")[0]
    changed = msgspec.structs.replace
    before = fingerprint(config)
    assert len(before) == 32
    same = (
        changed(config, name="other", version=7, outcome="said otherwise", golden_tolerance=1e-3),
        changed(config, policy=changed(config.policy, version="9"), dynamic_batching=Batching(8)),
    )
    assert {fingerprint(other) for other in same} == {before}
    others = (
        changed(config, digest="0" * 64),
        changed(config, features=tuple(reversed(config.features))),
        changed(config, features=("weight", *config.features[1:])),
        changed(config, state=tuple(reversed(config.state))),
        changed(config, state=()),
        changed(config, input=config.input[:1] + config.input[2:]),
    )
    assert len({before, *(fingerprint(other) for other in others)}) == len(others) + 1


@pytest.mark.parametrize("change", [{"fill": 81.0}, {"unit": "Hz"}])
def test_a_fingerprint_holds_units_and_fills(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = model_of("step")[0]
    before = fingerprint(config)
    table = tuple(
        msgspec.structs.replace(feature, **change) if feature.name == "heart_rate" else feature
        for feature in FEATURES
    )
    monkeypatch.setattr(steps, "FEATURES", table)
    assert fingerprint(config) != before
