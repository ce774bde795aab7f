"""Contributions mean what they say: what a value adds beyond an ordinary one."""

from collections.abc import Iterator

import numpy as np
import pytest

from engines import repository, synthetic
from engines.engine import Engine
from engines.explain import contributions, ordinary, shapley
from engines.steps import SeriesModel, run_steps
from schemas.features import CHANNEL
from schemas.window import FILL, NEVER, Rows, rows
from tests.kinds import FEATURES, SERIES, engine_of

UNKNOWN = np.full(4, np.nan, dtype=np.float32)


@pytest.fixture(params=SERIES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = engine_of(request.param)
    yield engine
    engine.close()


def window(**values: float) -> Rows:
    """Six hours, in each of which these features were measured once."""
    cells, counts = np.zeros((2, 6, len(FILL)), dtype=np.float32)
    for name, value in values.items():
        cells[:, CHANNEL[name]] = value
        counts[:, CHANNEL[name]] = 1
    return rows(cells, counts, UNKNOWN)


def test_ordinary_values_add_nothing(engine: Engine) -> None:
    found = contributions(engine, window(heart_rate=86, lactate=1.9))
    assert dict(zip(FEATURES, found.tolist(), strict=True)) == pytest.approx(
        {"age": np.nan, "heart_rate": 0, "systolic_pressure": np.nan, "lactate": 0, "gcs": np.nan},
        nan_ok=True,
    )


def test_the_side_of_a_value_gives_the_sign(engine: Engine) -> None:
    ill = contributions(engine, window(heart_rate=140, lactate=8, systolic_pressure=80, gcs=5))
    well = contributions(engine, window(heart_rate=60, lactate=0.8, systolic_pressure=140, gcs=15))
    assert (ill[1:] > 0).all()
    assert (well[1:] < 0).all()


def test_a_feature_alone_adds_the_whole_difference(engine: Engine) -> None:
    found = contributions(engine, window(lactate=9))
    risks = [run_steps(engine, Rows(*(a[None] for a in window(lactate=v))))[0, -1] for v in (9, 1.9)]
    assert found[FEATURES.index("lactate")] == risks[0] - risks[1]


def test_shapley_values_add_up_to_the_whole_difference(engine: Engine) -> None:
    ill = window(heart_rate=140, lactate=8, systolic_pressure=80)
    usual = window(heart_rate=86, lactate=1.9, systolic_pressure=118)
    risks = [run_steps(engine, Rows(*(a[None] for a in one)))[0, -1] for one in (ill, usual)]
    found = shapley(engine, ill, 2)
    assert np.isnan(found).tolist() == np.isnan(contributions(engine, ill)).tolist()
    assert np.nansum(found) == pytest.approx(risks[0] - risks[1], abs=1e-5)
    assert found.tobytes() == shapley(engine, ill, 2).tobytes()


def test_ordinary_rows_keep_when_and_how_often() -> None:
    engine = repository.load(repository.SHIPPED, "vitals")
    model = SeriesModel(engine.config)
    stays = model.chosen(synthetic.stays(3, 5))
    made = ordinary(stays, np.array([0, 4, 7]), model)
    assert made.elapsed.tobytes() == stays.elapsed.tobytes()
    assert made.counts.tobytes() == stays.counts.tobytes()
    for n, feature in enumerate((0, 4, 7)):
        changed = np.flatnonzero((made.values[n] != stays.values[n]).any(axis=0))
        assert set(changed) <= {feature}
        assert (made.values[n, :, feature] == FILL[model.columns[feature]]).all()
    never = stays.elapsed >= NEVER
    assert (stays.values[never] == np.broadcast_to(FILL[model.columns], never.shape)[never]).all()
    engine.close()
