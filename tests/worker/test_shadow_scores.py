"""Joining risks by record, with figures computed by hand."""

from schemas.model_config import Level, Policy
from worker.history import Span
from worker.shadow_scores import Risks, decisions, difference, grid, join


def risks(*scores: tuple[int, int, float]) -> Risks:
    made = Risks()
    for partition, offset, risk in scores:
        made.add(partition, offset, risk)
    return made


SERVED = risks((0, 4, 0.1), (0, 5, 0.2), (0, 7, 0.4), (0, 6, 0.3), (0, 8, 0.5), (0, 7, 0.4), (1, 1, 0.9))
SHADOW = risks((0, 5, 0.2), (0, 6, 0.5), (0, 8, 0.4), (0, 9, 0.6), (0, 10, 0.6), (2, 1, 0.9))


def policy(*enters: float) -> Policy:
    levels = tuple(Level(f"level-{number}", enter) for number, enter in enumerate(enters))
    return Policy("1", levels, 0.05, 7200.0, 14400.0, 0.15, 43200.0)


def test_records_are_joined_by_partition_and_offset_in_any_order_and_once() -> None:
    joined = join(SERVED, SHADOW)
    assert joined.served.tolist() == [0.2, 0.3, 0.5]
    assert joined.shadow.tolist() == [0.2, 0.5, 0.4]
    assert joined.spans == {0: Span(5, 9)}
    assert (joined.only_served, joined.only_shadow) == (1, 0)
    assert (joined.outside_served, joined.outside_shadow) == (
        2,
        3,
    )


def test_the_shadow_alone_may_have_a_record_of_the_common_stretch() -> None:
    joined = join(risks((0, 1, 0.1), (0, 3, 0.1)), risks((0, 1, 0.1), (0, 2, 0.1), (0, 3, 0.1)))
    assert (joined.only_served, joined.only_shadow) == (0, 1)


def test_the_differences_are_those_computed_by_hand() -> None:
    # 0, 0.2, -0.1: mean 1/30, absolute 0, 0.1, 0.2.
    assert difference(join(SERVED, SHADOW)) == {
        "mean": 0.033333,
        "mean_absolute": 0.1,
        "p50_absolute": 0.1,
        "p90_absolute": 0.18,
        "p99_absolute": 0.198,
        "max_absolute": 0.2,
        "equal": 1,
        # Deviations -0.4/3, -0.1/3, 0.5/3 and -0.5/3, 0.4/3, 0.1/3: products 0.21/9, both squares 0.42/9.
        "correlation": 0.5,
    }


def test_where_one_side_says_the_same_of_all_there_is_no_correlation() -> None:
    found = difference(join(risks((0, 1, 0.5), (0, 2, 0.5)), risks((0, 1, 0.1), (0, 2, 0.3))))
    assert found is not None
    assert found["correlation"] is None
    assert found["mean"] == -0.3


def test_nothing_in_common_has_no_difference() -> None:
    assert difference(join(risks((0, 1, 0.5)), risks((0, 2, 0.5)))) is None
    assert difference(join(risks(), risks((0, 2, 0.5)))) is None


def test_decisions_are_counted_at_each_level_of_both_policies() -> None:
    found = decisions(join(SERVED, SHADOW), {"served": policy(0.3, 0.5), "shadow": policy(0.25)})
    counted = {
        (each["policy"], each["severity"], each["enter"]): tuple(
            each[name] for name in ("both", "only_served", "only_shadow", "neither")
        )
        for each in found
    }
    assert counted == {
        ("served", "level-0", 0.3): (2, 0, 0, 1),
        ("served", "level-1", 0.5): (0, 1, 1, 1),
        ("shadow", "level-0", 0.25): (2, 0, 0, 1),
    }


def test_the_grid_counts_every_record_and_reaches_the_greatest_risk() -> None:
    found = grid(join(SERVED, SHADOW))
    assert found["top"] == 0.5
    assert sum(map(sum, found["counts"])) == 3
    assert found["counts"][24][20] == 1  # 0.5 served, 0.4 of the shadow; cells are 0.02 wide
    assert found["counts"][10][10] == 1
