"""A few hundred of the cases of `make fuzz`, the same at every run."""

from tests.engines.dicom_files import seeds
from tests.fuzz.mutate import CHANGES, Files
from tests.fuzz.run import DECODED, KEPT, fuzz

COUNT = 300


async def test_mutated_pictures_have_one_fate_each() -> None:
    found = await fuzz(range(COUNT), seed=1)
    assert found.fates.total() == COUNT
    assert 0.1 < found.fates[DECODED] / COUNT < 0.6, "some must be decoded, and most must not"
    assert len(found.fates) > 8
    assert sum(found.fates[fate] for fate in KEPT) < COUNT / 50


def test_a_case_is_the_same_whenever_it_is_asked_for() -> None:
    cases = [Files(1).case(number) for number in range(COUNT)]
    assert cases[7] == Files(1).case(7)
    assert cases[7] != Files(2).case(7)
    assert {case.seed for case in cases} == seeds().keys()
    assert {name for case in cases for name in case.changes} == {change.__name__ for change in CHANGES}
