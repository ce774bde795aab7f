"""NEWS2, qSOFA and MEWS against their charts, written out here a second time, score by score."""

from decimal import ROUND_HALF_UP, Decimal
from itertools import product
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import news2
from schemas.news2 import Acvpu, Observed, Scale, Total, mews, qsofa, response

# The printed charts: (first value, last value, score), ends included, in the resolution they are printed in.
INFINITY = "1000"
NEWS2_CHART = {
    "respiratory_rate": [
        ("0", "8", 3),
        ("9", "11", 1),
        ("12", "20", 0),
        ("21", "24", 2),
        ("25", INFINITY, 3),
    ],
    "systolic_pressure": [
        ("0", "90", 3),
        ("91", "100", 2),
        ("101", "110", 1),
        ("111", "219", 0),
        ("220", INFINITY, 3),
    ],
    "heart_rate": [
        ("0", "40", 3),
        ("41", "50", 1),
        ("51", "90", 0),
        ("91", "110", 1),
        ("111", "130", 2),
        ("131", INFINITY, 3),
    ],
    "temperature": [
        ("0.0", "35.0", 3),
        ("35.1", "36.0", 1),
        ("36.1", "38.0", 0),
        ("38.1", "39.0", 1),
        ("39.1", INFINITY, 2),
    ],
}
SATURATION_CHART = {
    (1, False): [("0", "91", 3), ("92", "93", 2), ("94", "95", 1), ("96", "100", 0)],
    (1, True): [("0", "91", 3), ("92", "93", 2), ("94", "95", 1), ("96", "100", 0)],
    (2, False): [("0", "83", 3), ("84", "85", 2), ("86", "87", 1), ("88", "92", 0), ("93", "100", 0)],
    (2, True): [
        ("0", "83", 3),
        ("84", "85", 2),
        ("86", "87", 1),
        ("88", "92", 0),
        ("93", "94", 1),
        ("95", "96", 2),
        ("97", "100", 3),
    ],
}
CONSCIOUSNESS_CHART = {"A": 0, "C": 3, "V": 3, "P": 3, "U": 3}
OXYGEN_CHART = {False: 0, True: 2}

MEWS_CHART = {
    "systolic_pressure": [
        ("0", "70", 3),
        ("71", "80", 2),
        ("81", "100", 1),
        ("101", "199", 0),
        ("200", INFINITY, 2),
    ],
    "heart_rate": [
        ("0", "40", 2),
        ("41", "50", 1),
        ("51", "100", 0),
        ("101", "110", 1),
        ("111", "129", 2),
        ("130", INFINITY, 3),
    ],
    "respiratory_rate": [
        ("0", "8", 2),
        ("9", "14", 0),
        ("15", "20", 1),
        ("21", "29", 2),
        ("30", INFINITY, 3),
    ],
    "temperature": [("0.0", "34.9", 2), ("35.0", "38.4", 0), ("38.5", INFINITY, 2)],
}
QSOFA_CHART = {
    "respiratory_rate": [("0", "21", 0), ("22", INFINITY, 1)],
    "systolic_pressure": [("0", "100", 1), ("101", INFINITY, 0)],
}

Chart = list[tuple[str, str, int]]

ALL_CHARTS = [
    *((news2.news2, name, chart) for name, chart in NEWS2_CHART.items()),
    *((mews, name, chart) for name, chart in MEWS_CHART.items()),
    *((qsofa, name, chart) for name, chart in QSOFA_CHART.items()),
]

NORMAL = Observed(
    respiratory_rate=16,
    oxygen_saturation=97,
    supplemental_oxygen=False,
    systolic_pressure=120,
    heart_rate=70,
    acvpu="A",
    temperature=37,
)


def seen_as(values: dict[str, Any]) -> Observed:
    return msgspec.convert(values, Observed)


def printed(chart: Chart, value: Decimal) -> int:
    """The score that a person reads off the chart, for the value as a monitor shows it."""
    shown = value.quantize(Decimal(chart[0][0]), rounding=ROUND_HALF_UP)
    (score,) = [points for first, last, points in chart if Decimal(first) <= shown <= Decimal(last)]
    return score


def around_edges(chart: Chart) -> list[Decimal]:
    """Every decimal step around each printed value at which a band begins or ends."""
    resolution = Decimal(1) if "." not in chart[0][0] else Decimal("0.1")
    edges = {Decimal(text) for first, last, _ in chart for text in (first, last)} - {Decimal(INFINITY)}
    tenths = [resolution * step / 10 for step in range(-25, 26)]
    hundredths = [resolution * step / 100 for step in (*range(-60, -39), *range(40, 61))]
    return sorted({edge + step for edge in edges for step in (*tenths, *hundredths) if edge + step >= 0})


def score_of(total: Total, parameter: str) -> int:
    (part,) = [part for part in total.parts if part.parameter == parameter]
    assert part.low == part.high
    assert not part.missing
    return part.low


@pytest.mark.parametrize(
    ("score", "name", "chart"), ALL_CHARTS, ids=lambda item: getattr(item, "__name__", None)
)
def test_every_decimal_step_around_every_edge(score: object, name: str, chart: Chart) -> None:
    assert callable(score)
    for value in around_edges(chart):
        for held in (float(value), float(np.float32(value))):
            assert score_of(score(seen_as({name: held})), name) == printed(chart, value), (name, value)


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("oxygen", [False, True])
@pytest.mark.parametrize("consciousness", [*get_args(Acvpu), *range(3, 16)])
def test_every_combination_of_scale_oxygen_and_consciousness(
    scale: Scale, oxygen: bool, consciousness: Acvpu | int
) -> None:
    chart = SATURATION_CHART[scale, oxygen]
    if isinstance(consciousness, int):
        seen = msgspec.structs.replace(NORMAL, acvpu=None, gcs=float(consciousness))
        expected = CONSCIOUSNESS_CHART["A" if consciousness == 15 else "V"]
    else:
        seen = msgspec.structs.replace(NORMAL, acvpu=consciousness)
        expected = CONSCIOUSNESS_CHART[consciousness]
    for value in (v for v in around_edges(chart) if v <= 100):
        total = news2.news2(
            msgspec.structs.replace(seen, oxygen_saturation=float(value), supplemental_oxygen=oxygen), scale
        )
        assert score_of(total, "oxygen_saturation") == printed(chart, value)
        assert score_of(total, "supplemental_oxygen") == OXYGEN_CHART[oxygen]
        assert score_of(total, "consciousness") == expected
        assert total.low == total.high == printed(chart, value) + OXYGEN_CHART[oxygen] + expected


def expected_response(scores: list[int]) -> str:
    total = sum(scores)
    if total >= 7:
        return "high"
    if total in (5, 6):
        return "medium"
    if 3 in scores:
        return "low-medium"
    return "low" if total in (1, 2, 3, 4) else "none"


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("oxygen", [False, True])
def test_every_combination_of_bands(scale: Scale, oxygen: bool) -> None:
    charts: dict[str, Chart] = {**NEWS2_CHART, "oxygen_saturation": SATURATION_CHART[scale, oxygen]}
    bands = [[(float(first), score) for first, _, score in chart] for chart in charts.values()]
    seen_responses = set()
    levels: list[Any] = [("A", CONSCIOUSNESS_CHART["A"]), ("C", CONSCIOUSNESS_CHART["C"])]
    for *chosen, (acvpu, alertness) in product(*bands, levels):
        values = {name: value for name, (value, _) in zip(charts, chosen, strict=True)}
        total = news2.news2(seen_as({**values, "supplemental_oxygen": oxygen, "acvpu": acvpu}), scale)
        scores = [*(score for _, score in chosen), OXYGEN_CHART[oxygen], alertness]
        assert total.low == total.high == sum(scores)
        assert total.complete
        assert response(total) == expected_response(scores)
        seen_responses.add(response(total))
    # Oxygen's 2 and any 3 make 5: under oxygen no single parameter calls by itself.
    assert seen_responses == {"low", "medium", "high"} | ({"none", "low-medium"} if not oxygen else set())


@pytest.mark.parametrize(
    ("change", "low", "expected"),
    [
        ({}, 0, "none"),
        ({"heart_rate": 91}, 1, "low"),
        ({"heart_rate": 130, "supplemental_oxygen": True}, 4, "low"),
        ({"heart_rate": 131}, 3, "low-medium"),
        ({"acvpu": "C"}, 3, "low-medium"),
        ({"acvpu": "C", "heart_rate": 91}, 4, "low-medium"),
        ({"acvpu": "C", "supplemental_oxygen": True}, 5, "medium"),
        ({"acvpu": "U", "heart_rate": 131}, 6, "medium"),
        ({"acvpu": "U", "heart_rate": 131, "temperature": 38.1}, 7, "high"),
    ],
)
def test_responses(change: dict[str, object], low: int, expected: str) -> None:
    total = news2.news2(msgspec.structs.replace(NORMAL, **change))
    assert total.low == low
    assert response(total) == expected


def test_nothing_known_is_unknown_and_could_be_anything() -> None:
    total = news2.news2(Observed())
    assert (total.low, total.high, response(total)) == (0, 20, "unknown")
    assert len(total.missing) == len(total.parts) == 7
    assert (mews(Observed()).low, mews(Observed()).high) == (0, 14)
    assert (qsofa(Observed()).low, qsofa(Observed()).high) == (0, 3)


@pytest.mark.parametrize("name", ["acvpu", *sorted(set(NORMAL.__struct_fields__) - {"acvpu", "gcs"})])
def test_a_normal_set_less_any_parameter_is_not_normal(name: str) -> None:
    total = news2.news2(msgspec.structs.replace(NORMAL, **{name: None}))
    assert response(total) == "unknown"
    assert total.missing == ({"acvpu": "consciousness"}.get(name, name),)
    assert total.high > total.low == 0


def test_a_value_that_is_no_number_is_missing() -> None:
    total = news2.news2(msgspec.structs.replace(NORMAL, heart_rate=float("nan")))
    assert total.missing == ("heart_rate",)


def test_on_scale_2_unknown_oxygen_leaves_a_high_saturation_open() -> None:
    total = news2.news2(
        msgspec.structs.replace(NORMAL, oxygen_saturation=98, supplemental_oxygen=None), scale=2
    )
    assert (total.low, total.high) == (0, 5)
    assert total.missing == ("supplemental_oxygen",)


def test_acvpu_stands_before_gcs() -> None:
    assert news2.news2(msgspec.structs.replace(NORMAL, gcs=3.0)).low == 0
    assert news2.news2(msgspec.structs.replace(NORMAL, acvpu="V", gcs=15.0)).low == 3


@pytest.mark.parametrize(
    ("seen", "low", "high"),
    [
        ({"acvpu": "A"}, 0, 0),
        ({"acvpu": "C"}, 1, 1),
        ({"acvpu": "V"}, 1, 1),
        ({"acvpu": "P"}, 2, 2),
        ({"acvpu": "U"}, 3, 3),
        ({"gcs": 15.0}, 0, 0),
        ({"gcs": 14.0}, 1, 3),
    ],
)
def test_consciousness_in_mews(seen: dict[str, object], low: int, high: int) -> None:
    part = mews(seen_as(seen)).parts[-1]
    assert (part.parameter, part.low, part.high) == ("consciousness", low, high)


@pytest.mark.parametrize(
    ("cuff", "line", "expected"),
    [
        (None, None, None),
        ((120, 5), None, (120, 5)),
        (None, (90, 5), (90, 5)),
        ((120, 5), (90, 6), (120, 5)),
        ((120, 6), (90, 5), (90, 5)),
        ((120, 5), (90, 5), (90, 5)),
    ],
)
def test_the_newer_pressure_counts_and_the_line_on_a_tie(
    cuff: tuple[float, float] | None, line: tuple[float, float] | None, expected: tuple[float, float] | None
) -> None:
    assert news2.newest_systolic(cuff, line) == expected


def test_what_is_too_old_is_missing() -> None:
    newest = {
        "heart_rate": (70.0, 3600.0),
        "temperature": (37.0, 3601.0),
        "systolic_pressure": (120.0, 60.0),
        "systolic_pressure_invasive": (80.0, 7200.0),
        "fio2": (21.0, 0.0),
        "gcs": (15.0, 0.0),
        "lactate": (9.0, 0.0),
        "respiratory_rate": (float("nan"), 0.0),
    }
    seen = news2.observed(newest, fresh_s=3600)
    assert seen == Observed(heart_rate=70, systolic_pressure=120, supplemental_oxygen=False, gcs=15)


@pytest.mark.parametrize(("fio2", "oxygen"), [(20.9, False), (21.0, False), (21.4, False), (21.5, True)])
def test_more_oxygen_than_air_is_supplemental(fio2: float, oxygen: bool) -> None:
    assert news2.observed({"fio2": (fio2, 0)}, 60).supplemental_oxygen is oxygen


complete_sets = st.builds(
    Observed,
    respiratory_rate=st.floats(1, 100),
    oxygen_saturation=st.floats(30, 100),
    supplemental_oxygen=st.booleans(),
    systolic_pressure=st.floats(20, 300),
    heart_rate=st.floats(10, 300),
    acvpu=st.sampled_from(get_args(Acvpu)),
    temperature=st.floats(25, 45),
)
names = [name for name in Observed.__struct_fields__ if name != "gcs"]


@given(complete_sets, st.sets(st.sampled_from(names), min_size=1), st.sampled_from(get_args(Scale)))
def test_the_interval_of_a_part_holds_the_total_of_the_whole(
    seen: Observed, hidden: set[str], scale: Scale
) -> None:
    partial = msgspec.structs.replace(seen, **dict.fromkeys(hidden))
    for whole, part in (
        (news2.news2(seen, scale), news2.news2(partial, scale)),
        (qsofa(seen), qsofa(partial)),
        (mews(seen), mews(partial)),
    ):
        assert whole.low == whole.high
        assert part.low <= whole.low <= part.high
        for known, open_ in zip(whole.parts, part.parts, strict=True):
            assert open_.low <= known.low <= open_.high


RANK = ("none", "unknown", "low", "low-medium", "medium", "high")


@given(complete_sets, st.sets(st.sampled_from(names), min_size=1), st.sampled_from(get_args(Scale)))
def test_learning_more_never_lowers_a_response_and_a_part_is_never_normal(
    seen: Observed, hidden: set[str], scale: Scale
) -> None:
    partial = response(news2.news2(msgspec.structs.replace(seen, **dict.fromkeys(hidden)), scale))
    whole = response(news2.news2(seen, scale))
    assert partial != "none"
    assert partial == "unknown" or RANK.index(partial) <= RANK.index(whole)


@given(
    st.floats(1, 100), st.floats(1, 100), st.sampled_from(["respiratory_rate", "heart_rate", "temperature"])
)
def test_farther_above_normal_scores_no_less(a: float, b: float, name: str) -> None:
    middle = {"respiratory_rate": 16.0, "heart_rate": 70.0, "temperature": 37.0}[name]
    near, far = sorted((a, b))
    for sign in (1, -1):
        less, more = (score_of(news2.news2(seen_as({name: middle + sign * by})), name) for by in (near, far))
        assert less <= more


@given(st.floats(30, 100), st.floats(30, 100), st.booleans())
def test_a_lower_saturation_scores_no_less_on_scale_1(a: float, b: float, oxygen: bool) -> None:
    low, high = sorted((a, b))
    found = [
        news2.news2(Observed(oxygen_saturation=value, supplemental_oxygen=oxygen)).low
        for value in (low, high)
    ]
    assert found[0] >= found[1]


@pytest.mark.parametrize(
    "bands", [value for value in vars(news2).values() if isinstance(value, news2.Bands)], ids=str
)
def test_arrays_score_as_single_values_do(bands: news2.Bands) -> None:
    values = np.linspace(0, 320, 25_601, dtype=np.float32)
    found = news2.points_of(bands, values)
    assert found.dtype == np.float32
    assert found.tolist() == [news2.points(bands, float(value)) for value in values]
    assert news2.points_of(bands, np.array([np.nan], np.float32)).tolist() == [0]
