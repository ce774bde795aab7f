"""The ladder under real faults: the rung taken, what is counted, that nothing is lost, and the way back."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import onnxruntime_backend
from schemas.model_config import ModelConfig
from tests import kinds
from tests.worker.ladders import (
    FAKE,
    REFERENCE,
    Library,
    Walk,
    Ward,
    bare,
    failures,
    in_use,
    it_is_time,
    put,
    records,
    rung,
    small,
    started,
    steps,
    undisturbed,
    with_graph,
)
from tests.worker.records import HOUR, T0, observation, record
from tests.worker.test_checkpoint import ListLog
from worker import serving
from worker.serving import FIRST_CLIMB_S, LAST_CLIMB_S
from worker.store import Store

HALF = 12
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, *small())
    return tmp_path


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


async def test_a_missing_library_comes_back(models: Path, library: Library) -> None:
    library.go()
    failed, stepped, back = failures("backend"), steps(REFERENCE, "loaded"), steps(FAKE, "back")
    async with started(models) as ladder:
        assert ladder.current.rung == rung() == 1
        assert in_use(REFERENCE) == 1
        assert failures("backend") == failed + 1
        assert steps(REFERENCE, "loaded") == stepped + 1
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        it_is_time(ladder)
        assert not await ladder.climb()

        library.come()
        it_is_time(ladder)
        assert await ladder.climb()
        assert ladder.current.rung == rung() == 0
        assert (in_use(FAKE), in_use(REFERENCE)) == (1, 0)
        assert steps(FAKE, "back") == back + 1
        before = len(walk.outbox.messages)
        await walk.process(records()[HALF:])
    assert any(FAKE in message.value for message in walk.outbox.messages[before:])
    assert not any(FAKE in message.value for message in walk.outbox.messages[:before])
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages
    library.driver.expect_clean()


async def test_a_damaged_plan_is_built_again_and_one_that_does_not_load_is_done_without(
    models: Path, library: Library
) -> None:
    async with started(models) as ladder:
        assert ladder.current.rung == 0
    (plan,) = (models / "small/1/plans").glob("*.plan")
    whole = plan.read_bytes()
    plan.write_bytes(whole[:100] + b"\0" * 50 + whole[150:])
    async with started(models) as ladder:
        assert ladder.current.rung == 0
        assert plan.read_bytes() == whole
    library.module.refusal = "the plan is of another version"
    async with started(models) as ladder:
        assert ladder.current.rung == rung() == 1
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        library.module.refusal = None
        it_is_time(ladder)
        assert await ladder.climb()
        await walk.process(records()[HALF:])
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages


async def test_nan_from_the_first_rung_is_answered_by_the_next_within_the_chunk(
    models: Path, library: Library
) -> None:
    poisoned, down = failures("not-finite"), failures("engine-down")
    stepped = steps(REFERENCE, "engine-down")
    async with started(models) as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        library.module.spoiled = True
        await walk.process(records()[HALF : HALF + 4])
        assert walk.partition.unanswered is None
        assert ladder.current.rung == rung() == 1
        assert failures("not-finite") > poisoned
        assert failures("engine-down") == down + 1
        assert steps(REFERENCE, "engine-down") == stepped + 1
        it_is_time(ladder)
        assert not await ladder.climb()
        assert ladder.current.rung == 1

        library.module.spoiled = False
        it_is_time(ladder)
        assert await ladder.climb()
        assert rung() == 0
        await walk.process(records()[HALF + 4 :])
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages
    library.driver.expect_clean()


def with_pitfall(node: Callable[[], list[onnx.NodeProto]], **constants: object) -> tuple[ModelConfig, bytes]:
    """The step model, its risk summed with what nodes make as `pit` of the heart rate, `hr`."""
    config, graph = small()
    made = onnx.load_from_string(graph)
    sigmoid = next(one for one in made.graph.node if "risk" in one.output)
    sigmoid.output[0] = "clean"
    after = list(made.graph.node).index(sigmoid) + 1
    heart = [
        helper.make_node("Gather", ["values", "heart"], ["hr"], axis=1),
        *node(),
        helper.make_node("Add", ["clean", "pit"], ["risk"]),
    ]
    for i, one in enumerate(heart):
        made.graph.node.insert(after + i, one)
    constants = {"heart": np.int64(kinds.FEATURES.index("heart_rate")), **constants}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return with_graph(config, made.SerializeToString())


def root_pit() -> list[onnx.NodeProto]:
    """NaN below 40 beats, else 0."""
    return [
        helper.make_node("Sub", ["hr", "forty"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["pit"]),
    ]


def memory_pit() -> list[onnx.NodeProto]:
    """Between 30 and 40 beats it asks for 4 PB, else for 4 bytes."""
    return [
        helper.make_node("Sub", ["hr", "forty"], ["above"]),
        helper.make_node("Abs", ["above"], ["apart"]),
        helper.make_node("Less", ["apart", "six"], ["low"]),
        helper.make_node("Cast", ["low"], ["lows"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["lows"], ["any"], keepdims=1),
        helper.make_node("Mul", ["any", "petabyte"], ["more"]),
        helper.make_node("Add", ["more", "one64"], ["size"]),
        helper.make_node("Expand", ["zero", "size"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["pit"], keepdims=0),
    ]


def heavy(version: int) -> tuple[ModelConfig, bytes]:
    """The step model with 64 MB of weights that change nothing."""
    nodes = [
        helper.make_node("ReduceMax", ["ballast"], ["most"], keepdims=0),
        helper.make_node("Mul", ["hr", "most"], ["pit"]),
    ]
    config, graph = with_pitfall(lambda: nodes, ballast=np.zeros(16 << 20, np.float32))
    return msgspec.structs.replace(config, version=version), graph


@pytest.mark.parametrize("pit", [root_pit, memory_pit])
async def test_a_row_that_onnx_runtime_fails_on_costs_its_own_record_alone(
    tmp_path: Path, pit: Callable[[], list[onnx.NodeProto]]
) -> None:
    constants: dict[str, object] = {"forty": np.float32(40), "zero": np.float32(0)}
    if pit is memory_pit:
        constants |= {"six": np.float32(6), "petabyte": np.array([10**15]), "one64": np.array([1])}
    put(tmp_path, *with_pitfall(pit, **constants))
    slow = [
        record(
            100 + n, "slow", T0 + n * HOUR, observation("heart_rate", 35 if n == 1 else 60), event_id=f"s{n}"
        )
        for n in range(2)
    ]
    chunk = [*records()[:3], slow[0], *records()[3:6], slow[1], *records()[6:8]]
    chunk = [one._replace(offset=n) for n, one in enumerate(chunk)]
    async with started(tmp_path, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(chunk, len(chunk))
        assert ladder.current.rung == 0
        assert walk.partition.unanswered is None
    assert [letter.reason for letter in walk.outbox.dead_letters] == ["inference-failed"]
    assert walk.outbox.dead_letters[0].source.offset == 7
    assert len(walk.outbox.scores) == len(chunk) - 1


async def test_weights_that_turn_wrong_in_memory_leave_news2_alone_until_they_are_loaded_anew(
    models: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = kinds.CENTRE.copy()

    def session(graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        held = ort.OrtValue.ortvalue_from_numpy(weights)  # shares our memory, as a plan's weights are its own
        options.add_initializer("centre", held)
        made = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        made.held = held
        return made

    original = onnxruntime_backend._session
    monkeypatch.setattr(onnxruntime_backend, "_session", session)
    async with started(models, "onnxruntime") as ladder:
        ward = Ward(ladder, store, ListLog(records()))
        await ward.until_offset(HALF)
        weights[:] = np.nan
        await ward.until(lambda: ward.lane.floored)
        await ward.until_offset(len(records()))
        assert ward.lane.floored
        assert not await ladder.answers()

        monkeypatch.setattr(onnxruntime_backend, "_session", original)
        it_is_time(ladder)
        assert await ladder.climb()
        await ward.until(lambda: ward.lane.lag() == 0)
        assert not ward.lane.floored
        assert ladder.current.rung == rung() == 0
        await ward.lane.stop(5.0)
    quiet = await undisturbed(models)
    assert {m.value for m in ward.path.outbox.messages} == {m.value for m in quiet.messages}


async def test_too_little_memory_at_load_and_at_run(models: Path, library: Library) -> None:
    library.driver.fail_at = library.driver.made + 3
    async with started(models) as ladder:
        assert ladder.current.rung == rung() == 1
        it_is_time(ladder)
        assert await ladder.climb()
        assert ladder.current.rung == 0
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        library.module.failures = set(range(10_000))
        await walk.process(records()[HALF:])
        assert walk.partition.unanswered is None
        assert ladder.current.rung == rung() == 1
        library.module.failures = set()
        it_is_time(ladder)
        assert await ladder.climb()
    assert bare(walk.outbox.messages) == (await undisturbed(models)).messages
    library.driver.expect_clean()


async def test_both_rungs_broken_leave_news2_alone_and_both_come_back(
    models: Path, library: Library, store: Store
) -> None:
    quiet = await undisturbed(models)
    graph = models / "small/1/model.onnx"
    async with started(models) as ladder:
        ward = Ward(ladder, store, ListLog(records()))
        await ward.until_offset(HALF)
        library.module.spoiled = True
        graph.rename(graph.with_suffix(".away"))
        await ward.until(lambda: ward.lane.floored)
        await ward.until_offset(len(records()))
        found = ward.path.outbox.by_voice()["news2"]
        assert found == quiet.by_voice()["news2"]
        it_is_time(ladder)
        assert not await ladder.climb()

        graph.with_suffix(".away").rename(graph)
        it_is_time(ladder)
        assert await ladder.climb()
        assert ladder.current.rung == rung() == 1
        await ward.until(lambda: ward.lane.lag() == 0)
        assert not ward.lane.floored

        library.module.spoiled = False
        it_is_time(ladder)
        assert await ladder.climb()
        assert ladder.current.rung == rung() == 0
        await ward.lane.stop(5.0)
    assert {m.value for m in bare(ward.path.outbox.messages)} == {m.value for m in quiet.messages}


async def test_a_rung_that_keeps_failing_is_tried_ever_less_often(
    models: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(serving, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    async with started(models) as ladder:
        walk, waits = Walk(ladder), []
        for n in range(9):
            library.module.spoiled = True
            await walk.process(records()[2 * n : 2 * n + 2])
            assert ladder.current.rung == 1
            library.module.spoiled = False
            waits.append(ladder._climb_at - clock.now)
            clock.now = ladder._climb_at - 0.1
            assert not await ladder.climb()
            clock.now += 0.2
            assert await ladder.climb()
        doubled = [min(FIRST_CLIMB_S * 2**n, LAST_CLIMB_S) for n in range(9)]
        assert waits == pytest.approx(doubled)
        clock.now += LAST_CLIMB_S + 1
        library.module.spoiled = True
        await walk.process(records()[18:20])
        assert ladder._climb_at - clock.now == pytest.approx(FIRST_CLIMB_S), "it had lasted"


STARVED = """
import asyncio, resource, sys
from pathlib import Path
from tests.worker.ladders import Walk, put, records, settings, small
from tests.worker.test_ladder import heavy
from worker import serving
from worker.serving import Ladder

def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

async def main(models):
    serving.REFUSED_S = 0.0
    put(models, *small())
    ladder = Ladder(settings(models))
    await ladder.start()
    walk = Walk(ladder)
    await walk.process(records()[:12])
    put(models, *heavy(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used() + (180 << 20), hard))
    swapped = await ladder.look()
    refused = ladder.refused
    await walk.process(records()[12:])
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    print("starved", swapped, refused, ladder.current.config.version, len(walk.outbox.scores))
    print("fed", await ladder.look(), ladder.refused, ladder.current.config.version)
    await ladder.close()

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_version_that_onnx_runtime_has_no_memory_for_is_refused_until_there_is(tmp_path: Path) -> None:
    """A process of its own, whose address space is bounded while the version comes."""
    command = [sys.executable, "-c", STARVED, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = [line.split() for line in ran.stdout.splitlines() if line.startswith(("starved", "fed"))]
    assert told[0][:2] == ["starved", "False"]
    assert told[0][-2:] == ["1", str(len(records()))], "the one before went on"
    assert told[1] == ["fed", "True", "2"]
