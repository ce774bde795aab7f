"""A config.json edited under the same graph: states that mean something else by it are computed anew."""

from pathlib import Path

import msgspec
import pytest

from tests.worker.ladders import Walk, Ward, name_version, put, records, small, started
from tests.worker.test_checkpoint import ListLog
from tests.worker.test_swap import HALF, alone
from worker.store import Store


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, *small())
    return tmp_path


REREAD = ("age", "heart_rate", "systolic_pressure", "gcs", "lactate")
"""The step model's features in another order: the same graph, whose states mean something else."""


@pytest.mark.parametrize("prepared", [True, False])
async def test_a_config_that_reads_other_features_into_the_same_graph_gets_states_of_its_own(
    models: Path, tmp_path: Path, prepared: bool
) -> None:
    edited = small(features=REREAD)
    assert edited[0].digest == small()[0].digest
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        ladder.prepare = walk.prepare if prepared else None
        await walk.process(records()[:HALF])
        name_version(models, edited[0])
        assert await ladder.look()
        assert (walk.partition.prepared is not None) == prepared
        await walk.process(records()[HALF:])
    new = [score for score in walk.outbox.scores if score.source.offset >= HALF]
    expected = await alone(tmp_path / "alone", edited, records())
    assert new == [score for score in expected.scores if score.source.offset >= HALF]


async def test_stored_states_of_a_config_that_was_edited_since_are_computed_anew(
    models: Path, tmp_path: Path, store: Store
) -> None:
    edited, them = small(features=REREAD), records()
    async with started(models, "onnxruntime") as ladder:
        before = Ward(ladder, store, ListLog(them))
        await before.until_offset(HALF)
        await before.lane.stop(5.0)
    name_version(models, edited[0])
    async with started(models, "onnxruntime") as ladder:
        ward = Ward(ladder, store, ListLog(them))
        ward.log.committed = before.log.committed
        await ward.until(
            lambda: ward.lane.partition is not None and ward.lane.partition.position == len(them)
        )
        await ward.lane.stop(5.0)
    expected = {s.source.offset: s for s in (await alone(tmp_path / "alone", edited, them)).scores}
    assert ward.path.outbox.scores, "the first worker left some"
    assert all(score == expected[score.source.offset] for score in ward.path.outbox.scores)


async def test_states_outlive_an_edit_that_changes_nothing_of_their_meaning(models: Path) -> None:
    config = small()[0]
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        states = {key: patient.hidden for key, patient in walk.partition.patients.items()}
        name_version(models, msgspec.structs.replace(config, outcome="said otherwise"))
        assert await ladder.look()
        assert walk.partition.prepared is None
        walk.partition.belong(ladder.current.fingerprint)
        assert all(patient.hidden is states[key] for key, patient in walk.partition.patients.items())
        assert not any(patient.failed for patient in walk.partition.patients.values())


async def test_a_chunk_is_not_taken_on_by_a_config_whose_states_mean_something_else(models: Path) -> None:
    async with started(models, "onnxruntime") as ladder:
        began = ladder.current
        with began.held():
            name_version(models, small(features=REREAD)[0])
            assert await ladder.look()
            assert await ladder.instead(began, "engine-down") is None
