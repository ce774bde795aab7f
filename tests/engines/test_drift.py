"""Drift: bins, the index, chance, what is refused."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines import drift, drift_reference, repository
from engines.drift import Distribution, Hours, Reference, Shift
from engines.errors import DatasetError, RepositoryError
from schemas.features import CHANNEL
from schemas.window import CHANNELS, FILL, NEVER, Rows
from tests.engines.conftest import FEATURES, config_of, graph

CONFIG = config_of(graph())
DATA = {"name": "made", "digest": "0" * 64}
AGE, HEART_RATE, RISK = range(3)
WHOLE = np.full(2, NEVER, dtype=np.float32)
"""Values count as long as they are in the window."""


def ward(patients: int, seed: int, hours: int = 10) -> Hours:
    """Patients with an age and a heart rate that stays near the patient's own; one hour in ten has none."""
    rng = np.random.default_rng(seed)
    number = patients * hours
    values = np.empty((number, 3), dtype=np.float32)
    values[:, AGE] = np.repeat(rng.normal(65, 15, patients).round(), hours)
    values[:, HEART_RATE] = np.repeat(rng.normal(85, 12, patients), hours) + rng.normal(0, 12, number)
    values[:, RISK] = 1 / (1 + np.exp(2 - 0.03 * (values[:, HEART_RATE] - 85)))
    values[rng.random(number) < 0.1, HEART_RATE] = np.nan
    return Hours(np.repeat(np.arange(patients), hours), values)


def reference(patients: int = 1000) -> Reference:
    return drift.make(CONFIG, ward(patients, seed=1), WHOLE, DATA, "served")


def shifts(live: Hours) -> dict[str, Shift]:
    return {shift.feature: shift for shift in drift.compare(reference(), live)}


def one(values: list[float], stays: list[int] | None = None) -> Distribution:
    numbers = np.array(stays or [0] * len(values), dtype=np.int64)
    return drift.distribution(np.array(values, dtype=np.float32), numbers)


def test_a_continuous_feature_has_bins_of_equal_size() -> None:
    found = one([float(value) for value in range(1000)])
    assert len(found.edges) == 9
    assert set(found.hours[:-1]) <= {99, 100, 101}
    assert found.hours[-1] == 0
    assert found.names() == (*"0123456789", "absent")
    assert found.median == pytest.approx(499.5)


@pytest.mark.parametrize(
    ("values", "edges", "hours"),
    [
        ([0] * 5 + [1] * 3, (1.0,), (5, 3, 0)),
        ([3] * 50 + [4] * 20 + [15] * 30, (4.0, 15.0), (50, 20, 30, 0)),
        ([1] * 500 + [2] + [3] * 500, (3.0,), (501, 500, 0)),
        ([1] + [2] * 500 + [3] * 500, (3.0,), (501, 500, 0)),
        ([np.nan] * 4, (), (0, 4)),
    ],
)
def test_a_feature_of_few_values_has_a_bin_for_each(
    values: list[float], edges: tuple[float, ...], hours: tuple[int, ...]
) -> None:
    found = one(values)
    assert found.edges == edges
    assert found.hours == hours


def test_a_feature_with_one_value_shows_any_other() -> None:
    found = one([1.0] * 40)
    assert found.hours == (0, 40, 0, 0)
    assert found.count(np.array([0, 1, 1.5, np.nan], dtype=np.float32)).tolist() == [1, 1, 1, 1]


def test_a_value_that_many_share_has_a_bin_once() -> None:
    found = one([50.0] * 600 + [float(value) for value in range(51, 101)] * 8)
    assert len(set(found.edges)) == len(found.edges)
    assert found.edges[0] > 50
    assert sum(found.hours) == 1000


def test_edges_survive_json_as_the_same_float32() -> None:
    values = np.random.default_rng(0).normal(37, 0.5, 5000).astype(np.float32)
    found = drift.distribution(values, np.zeros(5000, np.int64))
    again = msgspec.json.decode(msgspec.json.encode(found), type=Distribution)
    assert again.count(values).tolist() == list(found.hours)


def test_the_index_is_nothing_between_equals_and_the_same_both_ways() -> None:
    same, other = np.array([10, 20, 30]), np.array([30, 20, 10])
    assert drift.index(same, same) == 0
    assert drift.index(same, other) == pytest.approx(drift.index(other, same))
    p, q = (same + 0.5) / 61.5, (other + 0.5) / 61.5
    assert drift.index(same, other) == pytest.approx(sum((p - q) * np.log(p / q)))
    assert np.isfinite(drift.index(np.array([0, 60, 0]), same))


def test_chance_is_what_samples_of_the_same_population_show() -> None:
    whole = reference()
    for feature, column in (("age", AGE), ("heart_rate", HEART_RATE), ("risk", RISK)):
        expected = whole.distributions()[feature]
        found = []
        for seed in range(100, 140):
            counts = expected.count(ward(100, seed).values[:, column])
            found.append(drift.index(counts, np.array(expected.hours)))
        assert np.mean(found) == pytest.approx(expected.noise * (1 / 100 + 1 / 1000), rel=0.25)
    assert whole.features["age"].noise > 3 * whole.features["heart_rate"].noise


def test_hours_of_one_patient_are_not_many_patients() -> None:
    found = shifts(ward(20, seed=3, hours=500))
    assert found["age"].band == "too few"
    assert found["age"].psi is None
    assert found["age"].patients_needed > 150


def test_another_sample_of_the_same_population_is_stable() -> None:
    assert {shift.band for shift in shifts(ward(400, seed=2)).values()} == {"stable"}


def test_a_wrong_unit_is_found_in_its_feature() -> None:
    live = ward(400, seed=2)
    live.values[:, HEART_RATE] /= 60  # beats a second
    found = shifts(live)
    assert {name: shift.band for name, shift in found.items()} == {
        "age": "stable",
        "heart_rate": "large",
        "risk": "stable",
    }
    assert found["heart_rate"].median == pytest.approx(85 / 60, rel=0.05)
    assert found["heart_rate"].reference_median == pytest.approx(85, rel=0.05)


def test_a_sensor_that_falls_away_is_found_in_its_feature() -> None:
    live = ward(400, seed=2)
    live.values[2000:, HEART_RATE] = np.nan
    found = shifts(live)
    assert found["heart_rate"].band == "large"
    assert found["heart_rate"].absent == pytest.approx(0.55, abs=0.02)
    assert found["heart_rate"].reference_absent == pytest.approx(0.1, abs=0.02)
    assert found["age"].band == found["risk"].band == "stable"


def test_a_younger_population_is_found_in_its_age() -> None:
    live = ward(400, seed=2)
    live.values[:, AGE] -= 20
    found = shifts(live)
    assert [name for name, shift in found.items() if shift.band != "stable"] == ["age"]
    assert found["age"].band == "large"
    assert drift.worst_first(list(found.values()))[0].feature == "age"


@pytest.mark.parametrize(
    ("psi", "chance", "band"),
    [
        (0.09, 0.0, "stable"),
        (0.11, 0.0, "moderate"),
        (0.11, 0.02, "stable"),
        (0.26, 0.0, "large"),
        (9.0, 0.051, "too few"),
    ],
)
def test_bands_are_of_what_is_above_chance(psi: float, chance: float, band: str) -> None:
    assert drift.band_of(psi, chance) == band


def test_hours_without_any_value_for_the_model_do_not_count() -> None:
    shape = (1, 3, CHANNELS)
    values = np.broadcast_to(FILL, shape).copy()
    made = Rows(values, np.full(shape, NEVER, np.float32), np.zeros(shape, np.float32))
    made.counts[0, 1, CHANNEL["heart_rate"]] = 2
    made.counts[0, 2, CHANNEL["lactate"]] = 1  # this model does not read it
    made.values[0, 1:, CHANNEL["heart_rate"]] = 120
    made.elapsed[0, 1, CHANNEL["heart_rate"]] = 0
    found, _ = drift.hours_of(made, np.array([[0.1, 0.2, 0.3]]), CONFIG)
    assert found.patients.tolist() == [0]
    np.testing.assert_array_equal(found.values, np.array([[np.nan, 120, 0.2]], dtype=np.float32))


def test_a_value_far_older_than_usual_is_absent() -> None:
    shape = (100, 6, CHANNELS)
    elapsed = np.zeros(shape, dtype=np.float32)
    beats = CHANNEL["heart_rate"]
    counts = np.zeros(shape, dtype=np.float32)
    counts[..., beats] = 1  # so that every hour counts
    elapsed[:50, 1, beats] = 1  # 99 in 100 are at most an hour old
    elapsed[0, 2:5, beats] = [2, 3, 4]
    made = Rows(np.broadcast_to(FILL, shape).copy(), elapsed, counts)
    found, absent_h = drift.hours_of(made, np.zeros((100, 6)), CONFIG)
    assert absent_h.tolist() == [1, 3]
    assert np.isnan(found.values[:6, HEART_RATE]).tolist() == [False, False, False, True, True, False]
    reference = drift.make(CONFIG, found, absent_h, DATA, "served")
    assert reference.absent_h.tolist() == [1, 3]
    assert reference.features["heart_rate"].hours[-1] == 2


def test_nothing_is_no_reference_and_cannot_be_compared() -> None:
    none = Hours(np.zeros(0, np.int64), np.zeros((0, 3), np.float32))
    with pytest.raises(DatasetError, match="no hour of the data has a value that tiny reads"):
        drift.make(CONFIG, none, WHOLE, DATA, "served")
    with pytest.raises(DatasetError, match="nothing to compare"):
        drift.compare(reference(20), none)


# The file


def written(folder: Path, **changes: Any) -> Path:
    content = msgspec.to_builtins(reference(50)) | changes
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / "tiny" / "reference.json").write_bytes(msgspec.json.encode(content))
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert drift_reference.read(written(tmp_path), CONFIG) == reference(50)


RISK_OF_50 = msgspec.to_builtins(reference(50).risk)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"digest": "f" * 64}, "it is of the model ffffffffffff, config.json names"),
        ({"features": {"age": RISK_OF_50}}, r"lacks \['heart_rate'\]"),
        ({"hours": 0}, "both must be above 0"),
        ({"hours": 501}, "age: its bins hold 500 hours, the reference 501"),
        ({"risk": RISK_OF_50 | {"edges": [0.1]}}, "risk: 1 edges make 3 bins, came 11"),
        ({"risk": RISK_OF_50 | {"edges": [0.1] * 9}}, "risk: edges must be finite numbers that ascend"),
        ({"risk": RISK_OF_50 | {"noise": -1}}, "risk: noise must be 0 or above"),
        ({"risk": RISK_OF_50 | {"absent_h": 49}}, "risk: absent_h must be 1 to 48, is 49"),
        ({"surprise": 1}, "is no reference: Object contains unknown field"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RepositoryError, match=complaint) as caught:
        drift_reference.read(written(tmp_path, **changes), CONFIG)
    assert "riskstream model reference tiny" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (written(tmp_path) / "tiny" / "reference.json").write_bytes(content)
    with pytest.raises(RepositoryError, match="is no reference"):
        drift_reference.read(tmp_path, CONFIG)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"cannot read .*`riskstream model reference tiny"):
        drift_reference.read(tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["vitals", "bedside"])
def test_a_shipped_model_has_its_reference(name: str) -> None:
    config = repository.read_config(repository.SHIPPED, name)
    found = drift_reference.read(repository.SHIPPED, config)
    assert found.stays > 3000
    assert (repository.SHIPPED / name / repository.REFERENCE).stat().st_size < 20_000
    assert min(d.noise for d in found.distributions().values()) > 0
    assert FEATURES[0] in found.features
