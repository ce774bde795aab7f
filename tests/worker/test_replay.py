"""Which stretches are run again."""

import pytest

from worker.errors import FatalError
from worker.replay import Bound, ReplayOrder


@pytest.mark.parametrize(
    ("since", "until", "empty"),
    [
        (Bound(time_ms=2), Bound(time_ms=1), True),
        (Bound(offset=5), Bound(offset=5), True),
        (Bound(time_ms=1), Bound(time_ms=2), False),
        (Bound(time_ms=9), Bound(offset=5), False),
        (Bound(), Bound(offset=5), False),
    ],
)
def test_a_stretch_that_ends_before_it_begins_is_refused(since: Bound, until: Bound, empty: bool) -> None:
    order = ReplayOrder(since, until, (), "again")
    if empty:
        with pytest.raises(FatalError, match="--from is not before --to"):
            order.refuse_empty()
    else:
        order.refuse_empty()
