"""Drift: whether what a model reads, and what it says, still looks as it did on the data it was made from.

Everything is counted in *patient-hours*: the last scored row of each patient in each hour. So a patient with
a record every second weighs no more than one with a record an hour, and live rows are as reference rows are.

The reference (`reference.json` in the model folder) has for each feature, and for the risk, the edges of at
most ten bins of about equal size and the patient-hours in each; those in which the feature was not in the
window, or far older than is usual, are a bin of their own, `absent`. Two distributions p, q over the bins are
compared by the population stability index, the sum of (p - q) ln(p / q); half a patient-hour is added to
every bin first, so that an empty one gives a number.

Chance alone makes this index larger than 0, the more so as a patient's hours resemble each other. `noise`
says by how much: it is what the index of one stay's worth of rows would be, from the variance between the
stays of the reference; that of P patients is about noise / P. Bands are judged on what is above chance, and
where chance alone would give `TELLABLE`, nothing is said.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from engines.errors import DatasetError
from engines.steps import columns
from schemas.features import CHANNEL, IS_STATIC
from schemas.model_config import ModelConfig
from schemas.window import NEVER, Rows

F32 = NDArray[np.float32]
Counts = NDArray[np.int64]

BINS = 10
"""Bins of a continuous feature: deciles, as the index is used since it exists; its bands are made for ten."""

FEW_VALUES = 20
"""A feature with no more distinct values than this has a bin for each."""

RARE = 0.01
"""A value with less than this share of a feature's measured hours shares the bin of its neighbour."""

SMOOTHING = 0.5
"""Patient-hours added to every bin, of the live data and of the reference."""

MODERATE, LARGE = 0.1, 0.25
"""The index's conventional bands: below the first stable, above the second another population."""

TELLABLE = 0.05
"""With so few patients that chance alone gives more than this, half of the first band, nothing is said."""

RISK = "risk"
"""What the risk is called among the features; no feature has this name."""

ABSENT = "absent"
"""The bin of patient-hours in which a feature is not in the window, or too old."""

USUAL, OLDER = 0.99, 2
"""A value that is more than so many times as old as this share of the reference's counts as absent: a sensor
that falls away is seen before the window has run out of its last value."""

Band = Literal["stable", "moderate", "large", "too few"]


class Distribution(Struct, frozen=True, forbid_unknown_fields=True):
    """How patient-hours lie over the bins of one feature.

    Bin k holds values from edges[k - 1] to below edges[k], in the feature's canonical unit.

    edges: ascending; none where nothing was measured.
    hours: patient-hours in each bin, one more than edges, and last those in which it was absent.
    median: of the others; None where there are none.
    noise: the index that chance alone gives, times the number of patients.
    absent_h: from this age in hours on a value counts as absent, 48 at most.
    """

    edges: tuple[float, ...]
    hours: tuple[int, ...]
    median: float | None
    noise: float
    absent_h: float = NEVER

    def names(self) -> tuple[str, ...]:
        """Names of the bins: metric labels."""
        return (*(str(number) for number in range(len(self.edges) + 1)), ABSENT)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Smoothed shares of the bins."""
        return smoothed(np.array(self.hours))

    @property
    def absent(self) -> float:
        """Share of the patient-hours in which it was absent."""
        return self.hours[-1] / sum(self.hours)

    def codes(self, values: F32) -> NDArray[np.intp]:
        """The bin of each value; of NaN, which stands for absent, the last."""
        found = np.searchsorted(np.array(self.edges, dtype=np.float32), values, side="right")
        return np.where(np.isnan(values), len(self.edges) + 1, found)

    def count(self, values: F32) -> Counts:
        """Patient-hours in each bin."""
        return np.bincount(self.codes(values), minlength=len(self.hours))


class Reference(Struct, frozen=True, forbid_unknown_fields=True):
    """What live data are compared with.

    model, digest: the model's name and graph.
    data, data_digest: name and digest of the data set, as in evaluation.json.
    stays, hours: how many there were; hours without any value for the model are not among them.
    risks: whose risks: of the `served` model, or of models `out of fold` that had not seen the stay.
    features: by name, in the model's order.
    risk: of the risk.
    """

    model: str
    digest: str
    data: str
    data_digest: str
    stays: int
    hours: int
    risks: Literal["served", "out of fold"]
    features: dict[str, Distribution]
    risk: Distribution

    def distributions(self) -> dict[str, Distribution]:
        """Of every feature, and last of the risk: the columns of `Hours`."""
        return {**self.features, RISK: self.risk}

    @property
    def absent_h(self) -> F32:
        """From which age on a value counts as absent, float32[features]."""
        return np.array([found.absent_h for found in self.features.values()], dtype=np.float32)


class Hours(NamedTuple):
    """Patient-hours.

    patients: int64[hours], numbers the patients.
    values: float32[hours, features + 1], canonical units, NaN where absent; the risk is last.
    """

    patients: NDArray[np.int64]
    values: F32


class Shift(Struct, frozen=True):
    """One feature, live and in the reference.

    feature: its name, or `risk`.
    psi: population stability index; None where there are too few patients to tell.
    chance: what chance alone gives.
    band: of psi less chance.
    patients_needed: how many patients would do.
    median, absent: live; reference_median, reference_absent: in the reference.
    shares, reference_shares: of the bins, the last that of the absent; edges: between the bins.
    """

    feature: str
    psi: float | None
    chance: float
    band: Band
    patients_needed: int
    median: float | None
    reference_median: float | None
    absent: float
    reference_absent: float
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    reference_shares: tuple[float, ...]

    @property
    def excess(self) -> float:
        """The index above chance; 0 where nothing can be said."""
        return 0.0 if self.psi is None else max(self.psi - self.chance, 0.0)


def hours_of(made: Rows, risks: NDArray[np.floating], config: ModelConfig) -> tuple[Hours, F32]:
    """The patient-hours of stays: the rows of hours in which something was measured that the model reads.

    Args:
        made: rows of the stays, float32[stays, steps, channels].
        risks: float[stays, steps], at the end of each hour.
        config: of the model.

    Returns:
        The hours, and from which age on a value counted as absent, float32[features].
    """
    chosen = columns(config)
    series = chosen[[not IS_STATIC[channel] for channel in chosen]]
    stays, steps = np.nonzero((made.counts[..., series] > 0).any(axis=-1))
    read = Rows(*(array[stays, steps][:, chosen] for array in made))
    absent_h = np.array([_absent_h(ages) for ages in read.elapsed.T], dtype=np.float32)
    return Hours(stays, joined(read.values, read.elapsed, risks[stays, steps], absent_h)), absent_h


def _absent_h(ages: F32) -> float:
    """From which age on a value counts as absent, from the ages of a feature's values in hours."""
    known = ages[ages < NEVER]
    if not len(known):
        return NEVER
    return min(OLDER * float(np.quantile(known, USUAL, method="inverted_cdf")) + 1, NEVER)


def joined(values: F32, elapsed: F32, risks: NDArray[np.floating], absent_h: F32) -> F32:
    """Rows of the model's features as `Hours.values` holds them."""
    out = np.empty((len(values), values.shape[1] + 1), dtype=np.float32)
    out[:, :-1] = np.where(elapsed >= absent_h, np.nan, values)
    out[:, -1] = risks
    return out


def make(
    config: ModelConfig,
    found: Hours,
    absent_h: F32,
    data: dict[str, Any],
    risks: Literal["served", "out of fold"],
) -> Reference:
    """The reference from patient-hours.

    Args:
        config: of the model.
        found, absent_h: of the stays, from `hours_of`.
        data: name and digest of the data set, from `physionet2012.described`.
        risks: whose the risks are.

    Raises:
        DatasetError: there is no hour.
    """
    if not len(found.patients):
        raise DatasetError(f"no hour of the data has a value that {config.name} reads")
    stays = np.unique(found.patients, return_inverse=True)[1]
    ages = [*absent_h.tolist(), NEVER]
    made = [distribution(found.values[:, column], stays, age) for column, age in enumerate(ages)]
    return Reference(
        config.name,
        config.digest,
        str(data["name"]),
        str(data["digest"]),
        int(stays.max()) + 1,
        len(stays),
        risks,
        dict(zip(config.features, made[:-1], strict=True)),
        made[-1],
    )


def distribution(values: F32, stays: NDArray[np.int64], absent_h: float = NEVER) -> Distribution:
    """Bins and counts of one feature.

    Args:
        values: float32[hours], NaN where absent.
        stays: int64[hours], numbers the stays from 0.
        absent_h: kept with it.
    """
    measured = values[~np.isnan(values)]
    edges = tuple(_short(edge) for edge in _edges(measured))
    blank = Distribution(edges, (0,) * (len(edges) + 2), None, 0.0)
    codes = blank.codes(values)
    counts = np.bincount(codes, minlength=len(blank.hours))
    median = _short(np.median(measured)) if len(measured) else None
    noise = round(_noise(codes, stays, counts), 4)
    return Distribution(edges, tuple(counts.tolist()), median, noise, absent_h)


def _edges(measured: F32) -> NDArray[np.float32]:
    """Edges of about ten equal bins, or between the values of a feature that has few."""
    if not len(measured):
        return np.zeros(0, dtype=np.float32)
    distinct, counts = np.unique(measured, return_counts=True)
    if len(distinct) == 1:  # so that any other value is seen
        return np.array([distinct[0], np.nextafter(distinct[0], np.float32(np.inf))], dtype=np.float32)
    if len(distinct) <= FEW_VALUES:
        return _between(distinct, counts / len(measured))
    deciles = np.quantile(measured, np.arange(1, BINS) / BINS, method="inverted_cdf")
    return np.unique(deciles[deciles > distinct[0]])


def _between(distinct: F32, shares: NDArray[np.float64]) -> F32:
    """The least value of every bin but the first; a rare value is in the bin of its neighbour."""
    starts: list[float] = []
    held = 0.0
    for value, share in zip(distinct.tolist(), shares.tolist(), strict=True):
        if held >= RARE and share >= RARE:
            starts.append(value)
            held = 0.0
        held += share
    return np.array(starts, dtype=np.float32)


def _short(value: np.floating) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(value)))


def _noise(codes: NDArray[np.intp], stays: NDArray[np.int64], counts: Counts) -> float:
    """The expected index of a sample of one stay from this very population, if it were linear in 1/stays.

    To second order the index is the sum of (p - q)^2 / q, whose expectation is the sum of var(p) / q; the
    variance is that between whole stays, because the hours of one are not independent.
    """
    number, width = int(stays.max()) + 1, len(counts)
    by_stay = np.bincount(stays * width + codes, minlength=number * width).reshape(number, width)
    shares = counts / counts.sum()
    apart = by_stay - by_stay.sum(axis=1, keepdims=True) * shares
    variance = (apart**2).sum(axis=0) / counts.sum() ** 2
    held = counts > 0
    return float(number * np.sum(variance[held] / shares[held]))


def smoothed(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Shares of bins, none of them 0."""
    return np.asarray((counts + SMOOTHING) / (counts.sum() + SMOOTHING * len(counts)), dtype=np.float64)


def index(live: NDArray[np.integer], reference: NDArray[np.integer]) -> float:
    """Population stability index of two counts over the same bins; 0 where they are alike."""
    p, q = smoothed(live), smoothed(reference)
    return float(np.sum((p - q) * np.log(p / q)))


def compare(reference: Reference, live: Hours) -> list[Shift]:
    """Every feature and the risk, live beside the reference; the order is the model's, the risk is last.

    Raises:
        DatasetError: there is no live patient-hour.
    """
    patients = len(np.unique(live.patients))
    if not patients:
        raise DatasetError("nothing to compare: no record was scored")
    found = reference.distributions().items()
    return [
        _shift(name, expected, live.values[:, column], patients, reference.stays)
        for column, (name, expected) in enumerate(found)
    ]


def _shift(name: str, expected: Distribution, values: F32, patients: int, stays: int) -> Shift:
    counts = expected.count(values)
    psi = index(counts, np.array(expected.hours))
    chance = expected.noise * (1 / patients + 1 / stays)
    known = values[~np.isnan(values)]
    band = band_of(psi, chance)
    return Shift(
        name,
        None if band == "too few" else round(psi, 4),
        round(chance, 4),
        band,
        int(np.ceil(expected.noise / TELLABLE)),
        _short(np.median(known)) if len(known) else None,
        expected.median,
        round(float(counts[-1] / len(values)), 4),
        round(expected.absent, 4),
        expected.edges,
        _rounded(counts / len(values)),
        _rounded(np.array(expected.hours) / sum(expected.hours)),
    )


def _rounded(shares: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(shares, 5).tolist())


def band_of(psi: float, chance: float) -> Band:
    """The band of what is above chance."""
    if chance > TELLABLE:
        return "too few"
    if psi - chance > LARGE:
        return "large"
    return "moderate" if psi - chance > MODERATE else "stable"


def worst_first(shifts: Sequence[Shift]) -> list[Shift]:
    """By what is above chance, those of which nothing can be said last."""
    return sorted(shifts, key=lambda shift: (shift.psi is None, -shift.excess))


if RISK in CHANNEL:
    raise ImportError("a feature may not be called risk")
