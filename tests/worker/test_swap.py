"""Versions swapped while records flow: nothing lost, every alert of the version that computed it."""

import asyncio
import gc
import hashlib
import os
import shutil
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx
import pytest

from engines import repository
from engines.steps import fingerprint
from schemas.messages import Alert
from schemas.model_config import Level, ModelConfig
from tests import kinds
from tests.worker.ladders import Walk, Ward, in_use, name_version, put, records, sample, small, started
from tests.worker.records import HOUR, T0, Outbox, Record, observation, record, worsening
from tests.worker.test_checkpoint import ListLog
from worker import serving
from worker.publish import Outgoing
from worker.served import Served
from worker.serving import Ladder
from worker.store import Store

HALF = 12


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, *small())
    return tmp_path


def swaps(outcome: str) -> float:
    return sample("riskstream_model_swaps_total", model="small", outcome=outcome)


def models_of(messages: Sequence[Outgoing]) -> list[tuple[int, str]]:
    """Version and digest that the model's alerts name, in order."""
    found = [msgspec.json.decode(m.value, type=Alert).model for m in messages if m.topic == "risk-alerts"]
    return [(model.version, model.digest) for model in found if model.name == "small"]


def anonymous(messages: Sequence[Outgoing], *configs: ModelConfig) -> list[Outgoing]:
    """Messages without the version and digest of who computed them."""
    made = []
    for message in messages:
        value = message.value
        for config in configs:
            value = value.replace(config.digest.encode(), b"DIGEST")
            value = value.replace(b'"version":%d,"digest":"DIGEST"' % config.version, b'"digest":"DIGEST"')
            value = value.replace(b'"model_version":%d,' % config.version, b"")
        made.append(message._replace(value=value))
    return made


async def alone(folder: Path, version: tuple[ModelConfig, bytes], them: Sequence[Record]) -> Outbox:
    """What a version publishes that serves from the start."""
    put(folder, *version)
    async with started(folder, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(them)
        return walk.outbox


async def test_alerts_name_the_version_that_computed_them_and_a_rollback_is_a_swap(
    models: Path, tmp_path: Path
) -> None:
    first, second = small(), small(2, note="second")
    swapped = swaps("swapped")
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        assert not await ladder.look()
        await walk.process(records()[:HALF])
        put(models, *second)
        assert await ladder.look()
        assert not await ladder.look()
        assert (in_use(b"onnxruntime-cpu", 2), in_use(b"onnxruntime-cpu", 1)) == (1, 0)
        mark = len(walk.outbox.messages)
        await walk.process(records()[HALF : HALF + 8])
        name_version(models, first[0])
        assert await ladder.look()
        again = len(walk.outbox.messages)
        await walk.process(records()[HALF + 8 :])
        assert not ladder._retired, "what was replaced is closed"
    assert swaps("swapped") == swapped + 2
    assert set(models_of(walk.outbox.messages[:mark])) == {(1, first[0].digest)}
    assert set(models_of(walk.outbox.messages[mark:again])) == {(2, second[0].digest)}
    assert set(models_of(walk.outbox.messages[again:])) <= {(1, first[0].digest)}
    quiet = await alone(tmp_path / "quiet", first, records())
    both = (first[0], second[0])
    assert anonymous(walk.outbox.messages, *both) == anonymous(quiet.messages, *both)


async def test_after_a_swap_risks_are_those_of_the_new_weights_from_the_start(
    models: Path, tmp_path: Path
) -> None:
    """The step model carries a state: with what the old weights left in it, risks would differ."""
    heavier = small(2, gain=1.7, note="heavier")
    made = kinds.model_of("step")[0]
    assert made.state
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        put(models, *heavier)
        assert await ladder.look()
        await walk.process(records()[HALF:])
    new = [score for score in walk.outbox.scores if score.source.offset >= HALF]
    expected = await alone(tmp_path / "alone", heavier, records())
    assert new == [score for score in expected.scores if score.source.offset >= HALF]
    old = {
        score.source.offset: score.risk
        for score in (await alone(tmp_path / "old", small(), records())).scores
    }
    assert all(score.risk != old[score.source.offset] for score in new)


async def test_states_are_there_when_a_version_begins_to_serve(models: Path) -> None:
    """No record waits for its patient's window to be encoded."""
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        them = records()
        await walk.process(them[:HALF])
        put(models, *small(2, gain=1.7, note="heavier"))
        assert await ladder.look()
        known = {key: p for key, p in walk.partition.patients.items() if p.hidden is not None}
        assert walk.partition.prepared is not None
        assert known.keys() == walk.partition.prepared.states.keys() != set()
        states = {key: new for key, (_, new) in walk.partition.prepared.states.items()}
        walk.partition.belong(ladder.current.fingerprint)
        assert walk.partition.prepared is None
        for key, patient in known.items():
            assert patient.hidden is states[key]
            assert not patient.failed


async def test_patients_who_change_while_states_are_prepared_have_theirs_computed_anew(
    models: Path, tmp_path: Path
) -> None:
    heavier = small(2, gain=1.7, note="heavier")
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])

        async def beside(served: Served) -> None:
            await walk.prepare(served)
            await walk.process(records()[HALF : HALF + 6])  # by the version before, which serves still

        ladder.prepare = beside
        put(models, *heavier)
        assert await ladder.look()
        await walk.process(records()[HALF + 6 :])
    new = [score for score in walk.outbox.scores if score.source.offset >= HALF + 6]
    expected = await alone(tmp_path / "alone", heavier, records())
    assert new == [score for score in expected.scores if score.source.offset >= HALF + 6]


async def test_the_policy_of_the_new_version_is_in_force(models: Path) -> None:
    strict = msgspec.structs.replace(
        kinds.POLICY, version="strict", levels=(Level("watch", 0.05),), exit=0.01
    )
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        assert {alert.policy_version for alert in walk.outbox.alerts} <= {"1"}
        put(models, *small(2, note="strict", policy=strict))
        assert await ladder.look()
        assert walk.policies.shipped["risk"] == strict
        mark = len(walk.outbox.alerts)
        await walk.process(records()[HALF:])
    assert {alert.policy_version for alert in walk.outbox.alerts[mark:]} == {"strict"}


def damage_digest(models: Path, config: ModelConfig) -> None:
    (models / "small/2/model.onnx").write_bytes(small(2, note="another")[1])


def damage_golden(models: Path, config: ModelConfig) -> None:
    put(models / "other", *small(2, gain=3.0))
    (models / "small/2/golden.npz").write_bytes((models / "other/small/2/golden.npz").read_bytes())


def damage_archive(models: Path, config: ModelConfig) -> None:
    golden = models / "small/2/golden.npz"
    whole = golden.read_bytes()
    golden.write_bytes(whole[:200] + bytes(reversed(whole[200:400])) + whole[400:])


def damage_json(models: Path, config: ModelConfig) -> None:
    (models / "small/config.json").write_bytes(b'{"name": "small", "versi\xff')


def damage_name(models: Path, config: ModelConfig) -> None:
    name_version(models, msgspec.structs.replace(config, name="small"))
    file = models / "small/config.json"
    file.write_bytes(file.read_bytes().replace(b'"name":"small"', b'"name":"large"'))


def damage_kind(models: Path, config: ModelConfig) -> None:
    image, graph = kinds.model_of("image")
    image = msgspec.structs.replace(image, name="small", version=2)
    (models / "small/2/model.onnx").write_bytes(graph)
    name_version(models, image)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_digest, "digest"),
        (damage_golden, "golden"),
        (damage_archive, ""),
        (damage_json, ""),
        (damage_name, ""),
        (damage_kind, "kind"),
    ],
)
async def test_a_refused_version_changes_nothing_and_is_tried_again(
    models: Path, damage: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = small(2, note="second")
    refused = swaps("refused")
    async with started(models, "onnxruntime") as ladder:
        walk = Walk(ladder)
        await walk.process(records()[:HALF])
        put(models, *second)
        damage(models, second[0])  # type: ignore[operator]
        assert not await ladder.look()
        assert reason in ladder.refused != ""
        assert swaps("refused") == refused + 1
        assert ladder.current.config.version == 1
        assert not await ladder.look(), "it is not tried again at once"
        assert swaps("refused") == refused + 1
        monkeypatch.setattr(serving, "REFUSED_S", 0.0)
        assert not await ladder.look(), "but after a while"
        assert swaps("refused") == refused + 2
        await walk.process(records()[HALF:])
        put(models, *second)
        assert await ladder.look()
        assert not ladder.refused
        assert ladder.current.config.version == 2


async def test_naming_again_what_serves_takes_a_refusal_back(models: Path) -> None:
    first = small()
    async with started(models, "onnxruntime") as ladder:
        serves = ladder.current
        damage_json(models, first[0])
        assert not await ladder.look()
        assert ladder.refused
        name_version(models, first[0])
        assert not await ladder.look()
        assert not ladder.refused
        assert ladder.current is serves


async def test_a_refusal_outlives_a_change_of_the_rung(models: Path) -> None:
    async with started(models, "onnxruntime") as ladder:
        damage_json(models, small()[0])
        await ladder.look()
        assert ladder.refused
        ladder._install(await ladder._load(0, ladder.current.config), "back")
        assert ladder.refused, "the version in the repository still does not serve"


async def test_a_failed_engine_is_replaced_by_its_own_version_though_another_is_named(
    models: Path,
) -> None:
    """Between the naming of a version and the look at it, the version that serves can still be loaded."""
    first = small()[0]
    own = models / "small/1/config.json"
    own.write_bytes(msgspec.json.encode(first))
    async with started(models, "onnxruntime") as ladder:
        ladder._spent = True
        put(models, *small(2, note="second"))
        assert await ladder.climb()
        assert ladder.current.config.version == 1


@pytest.mark.parametrize("while_", ["replaying", "held", "floored"])
async def test_a_swap_finds_a_lane_in_any_state(
    models: Path, store: Store, tmp_path: Path, while_: str
) -> None:
    heavier, them = small(2, gain=1.7, note="heavier"), records()
    async with started(models, "onnxruntime") as ladder:
        ward = Ward(ladder, store, ListLog(them))
        await ward.until_offset(HALF)
        put(models, *heavier)
        if while_ == "held":
            await ward.lane.hold(5.0)
            assert await ladder.look()
            ward.lane.resume()
        elif while_ == "floored":
            assert ward.lane.partition is not None
            async with ward.lane.partition.lock:
                ward.lane.partition.unanswered = ward.lane.partition.position
            assert ward.lane.floored
            assert await ladder.look()
        else:
            assert ward.lane.partition is not None
            assert await ward.checkpointer.checkpoint(ward.lane.partition)
            await ward.lane.stop(5.0)
            await store._redis.flushall()
            before, outbox = ward.log.committed, ward.path.outbox
            ward = Ward(ladder, store, ListLog(them))
            ward.log.committed = before
            ward.path.outbox.messages += outbox.messages
            await ward.until(lambda: ward.lane.partition is not None and ward.lane.partition.position > 0)
            assert await ladder.look()
        await ward.until(lambda: ward.lane.lag() == 0 and not ward.lane.floored)
        assert ward.lane.partition is not None
        partition = ward.lane.partition
        scores = {score.source.offset: score for score in ward.path.outbox.scores}
        last = max(scores)
        await ward.lane.stop(5.0)
    expected = await alone(tmp_path / "alone", heavier, them)
    by_offset = {score.source.offset: score for score in expected.scores}
    assert scores.keys() == by_offset.keys(), "nothing is lost"
    assert scores[last] == by_offset[last]
    assert partition.model == fingerprint(heavier[0])


def flow(well: int, hours: int) -> list[Record]:
    """A record of each patient by turns, hour after hour: one worsens, the others are well."""
    streams = [worsening("ill", 0, hours)]
    for n in range(well):
        times = [T0 + hour * HOUR + n + 1 for hour in range(hours)]
        streams.append([record(0, f"well{n}", time, observation("heart_rate", 60 + n)) for time in times])
    them = [stream[hour] for hour in range(hours) for stream in streams]
    return [
        one._replace(offset=n, value=(one.value or b"").replace(b'"event_id": "e', b'"event_id": "e%d-' % n))
        for n, one in enumerate(them)
    ]


def resident_mb() -> float:
    """Of this process, MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def spread(what: str, seconds: list[float]) -> str:
    return f"{what} {statistics.median(seconds) * 1e3:.1f} ms (longest {max(seconds) * 1e3:.1f})"


class Load:
    """Records processed again and again, each time from nothing, and how long each chunk took."""

    def __init__(self, ladder: Ladder, them: list[Record], configs: list[ModelConfig]) -> None:
        self.walk = Walk(ladder)
        self.rounds = 0
        self.steady: list[float] = []
        self.after_swap: list[float] = []
        self._ladder = ladder
        self._records = them
        self._configs = configs
        self._expected: list[Outgoing] = []

    async def one_round(self) -> None:
        """Process all, and compare with the first round of which nothing was swapped."""
        self.walk = Walk(self._ladder)
        partition = self.walk.partition
        for at in range(0, len(self._records), 16):
            fresh = at and partition.model != self._ladder.current.fingerprint
            began = time.perf_counter()
            await self.walk.pipeline.process(partition, self._records[at : at + 16])
            (self.after_swap if fresh else self.steady).append(time.perf_counter() - began)
            await asyncio.sleep(0)
        assert partition.unanswered is None
        found = anonymous(self.walk.outbox.messages, *self._configs)
        self._expected = self._expected or found
        # The same messages in the same order: nothing lost, nothing twice, each patient's in turn.
        assert found == self._expected
        self.rounds += 1


class Swapping:
    """Versions of the same weights, named by turns; what swaps took, and what the process held."""

    def __init__(self, ladder: Ladder, models: Path, configs: list[ModelConfig]) -> None:
        self.took: list[float] = []
        self.held: list[tuple[float, int, int]] = []
        self._ladder = ladder
        self._models = models
        self._configs = configs

    async def swap(self, count: int) -> None:
        """Swap so often, without a pause."""
        for n in range(count):
            name_version(self._models, self._configs[(n + 1) % 2])
            began = time.perf_counter()
            assert await self._ladder.look()
            self.took.append(time.perf_counter() - began)
            if (n + 1) % max(count // 20, 1) == 0:
                self.held.append((resident_mb(), threading.active_count(), opened()))


async def swapped_under_load(models: Path, count: int, growth: float) -> None:
    """Swap back to back while chunks follow each other; print what it took."""
    pair = (small(1), small(2, note="second"))
    for version in pair:
        put(models, *version)
    configs = [config for config, _ in pair]
    name_version(models, configs[0])
    async with started(models, "onnxruntime", engine_patience_s=10.0) as ladder:
        load, swapping = Load(ladder, flow(7, 48), configs), Swapping(ladder, models, configs)
        await load.one_round()
        task = asyncio.create_task(swapping.swap(count))
        while not task.done():
            await load.one_round()
        await task
        await ladder._sweep()
        assert not ladder._retired
    assert load.after_swap
    warm, last = swapping.held[len(swapping.held) // 10 - 1], swapping.held[-1]  # after a tenth, after all
    print(
        f"{count} swaps, {load.rounds} rounds of 384 records; {spread('a swap', swapping.took)}; "
        f"{spread('a chunk of 16', load.steady)}; {spread('the first after a swap', load.after_swap)}; "
        f"resident {warm[0]:.1f} -> {last[0]:.1f} MiB ({last[0] / warm[0] - 1:+.2%}), "
        f"threads {warm[1]} -> {last[1]}, files {warm[2]} -> {last[2]}"
    )
    assert last[1] <= warm[1] + 2
    assert last[2] <= warm[2] + 2
    assert last[0] < warm[0] * (1 + growth)


async def test_swaps_under_load_lose_nothing_and_leak_nothing(tmp_path: Path) -> None:
    await swapped_under_load(tmp_path, 60, growth=0.1)  # sixty sessions that were not freed would double it


@pytest.mark.integration
async def test_a_thousand_swaps_under_load(tmp_path: Path) -> None:
    await swapped_under_load(tmp_path, 1000, growth=0.02)


@pytest.mark.integration
async def test_what_a_swap_costs_the_chunk_after_it(tmp_path: Path) -> None:
    """Prints it, of the shipped model: with states that were prepared, and where each has to be computed."""
    served = repository.read_config(repository.SHIPPED, "vitals")
    graph = onnx.load_from_string(repository.read_graph(repository.SHIPPED, served))
    shutil.copytree(repository.SHIPPED / "vitals", tmp_path / "vitals")
    versions = []
    for version in (2, 3):
        graph.doc_string = f"version {version}"
        content = graph.SerializeToString()
        shutil.copytree(tmp_path / "vitals" / "1", tmp_path / "vitals" / str(version))
        (tmp_path / "vitals" / str(version) / repository.GRAPH).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        versions.append(msgspec.structs.replace(served, version=version, digest=digest))
    name_version(tmp_path, versions[0])
    found: dict[str, list[float]] = {"a chunk": [], "after a swap": [], "after a swap, not prepared": []}
    async with started(tmp_path, "onnxruntime", model="vitals", engine_patience_s=10.0) as ladder:
        walk, number = Walk(ladder), 0

        async def chunk(what: str | None, minute: int) -> None:
            nonlocal number
            hour, within = divmod(minute, 60)
            them = []
            for patient in range(512):
                seen = T0 + hour * HOUR + within * 60_000
                number += 1
                them.append(
                    record(number, f"p{patient}", seen, observation("heart_rate", 70), event_id=f"e{number}")
                )
            began = time.perf_counter()
            await walk.pipeline.process(walk.partition, them)
            if what is not None:
                found[what].append(time.perf_counter() - began)

        for hour in range(36):
            await chunk(None, 60 * hour)
        for turn in range(8):
            minute = 36 * 60 + 6 * turn
            await chunk(None if turn == 0 else "a chunk", minute)
            ladder.prepare = walk.prepare if turn % 2 == 0 else None
            name_version(tmp_path, versions[(turn + 1) % 2])
            assert await ladder.look()
            await chunk("after a swap" if turn % 2 == 0 else "after a swap, not prepared", minute + 1)
    print("; ".join(spread(f"{what}, of 512 patients", took) for what, took in found.items()))
    assert all(found.values())
