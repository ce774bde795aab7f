"""The path of one imaging record, on the shipped image model, with sources that answer at once."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from engines import images, repository
from engines.decoded import Decoded
from engines.engine import F32, Engine
from engines.errors import BackendError
from schemas.imaging import ImagingEvent
from schemas.messages import MAX_ACTIVATION_BYTES, DeadLetter, Finding
from schemas.model_config import ImageInput
from tests.engines.pictures import dicom, of_class
from tests.worker.ladders import sample
from tests.worker.pictures import T0, FakeSources, dicomweb, inline, png, record
from tests.worker.records import Record
from tests.worker.test_imaging_lanes import Log, until
from worker import config as settings_of
from worker import imaging, store
from worker.batch import Batcher, Tensors
from worker.config import Settings
from worker.decode import Refusal
from worker.errors import EngineDownError, EngineHungError
from worker.imaging import Fate, ImagingPath, Original, Outlets, finding_id
from worker.imaging_lanes import ImagingLane, ImagingStages, Room
from worker.imaging_memory import ScoredImages
from worker.imaging_steps import Step, follow
from worker.intake import Limits
from worker.partition import Place
from worker.publish import Outgoing
from worker.served import Alone, Served
from worker.transport import Chunk

PLACE = Place("c", "imaging", 0)
LIMITS = Limits(12 << 20, 1000, 1000)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The shipped image model."""
    engine = repository.load(repository.SHIPPED, "pneumonia")
    yield engine
    engine.close()


def wanted(engine: Engine) -> ImageInput:
    assert engine.config.image is not None
    return engine.config.image


class Published:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    async def __call__(self, messages: Sequence[Outgoing]) -> None:
        self.messages += messages

    def findings(self) -> list[Finding]:
        return [msgspec.json.decode(m.value, type=Finding) for m in self.messages if m.topic == "findings"]

    def letters(self) -> list[DeadLetter]:
        return [msgspec.json.decode(m.value, type=DeadLetter) for m in self.messages if m.topic == "dead"]


class Bench:
    """A path and all that it touches."""

    def __init__(self, engine: Engine, settings: Settings, verify: Callable[[], None] = lambda: None) -> None:
        self.published = Published()
        self.sources = FakeSources()
        self.batcher = Batcher(engine, verify, 20.0, 10.0)
        self.served = Served(engine.config, engine.backend, self.batcher.infer)
        self.serving = Alone(self.served, self.batcher.answers)
        self.settings = settings
        self._clients: list[Any] = []
        self.path = self.again()

    def redis(self, settings: Settings) -> Any:
        """A client that is closed in the end."""
        self._clients.append(store.connect(settings))
        return self._clients[-1]

    async def close(self) -> None:
        await self.batcher.close()
        for client in self._clients:
            await client.aclose()

    def again(self) -> ImagingPath:
        """A path as a new process has it: with what Redis remembers."""
        self.scored = ScoredImages(self.redis(self.settings), f"c:{self.settings.group}:t", 1.0)
        outlets = Outlets(self.published, "findings", "dead")
        self.path = ImagingPath(self.serving, self.sources, outlets, self.scored, LIMITS)
        return self.path


@pytest.fixture
async def bench(engine: Engine, redis_settings: Settings) -> AsyncIterator[Bench]:
    bench = Bench(engine, redis_settings)
    yield bench
    await bench.close()


async def test_a_picture_becomes_a_finding(bench: Bench, engine: Engine) -> None:
    content = png(1)
    sent = record(7, inline(content), modality="DX", body_part="CHEST")
    assert await bench.path.take(PLACE, sent) == "scored"
    (finding,), (message,) = bench.published.findings(), bench.published.messages
    assert message.key == b"p1"
    headers = dict(message.headers)
    assert headers["ce_type"] == b"riskstream.finding"
    assert headers["ce_id"].decode() == finding.id
    assert b"p1" not in b"".join(value for _, value in message.headers)
    assert engine.config.image is not None
    picture = wanted(engine)
    expected = engine.run({"image": images.read(content, picture).image[None]})["probability"][0]
    assert [c.probability for c in finding.classes] == pytest.approx(expected.tolist(), abs=1e-6)
    assert finding.risk == pytest.approx(finding.classes[1].probability)
    assert finding.findings == ("pneumonia",)
    assert (finding.modality, finding.body_part, finding.view) == ("DX", "CHEST", "")
    assert (finding.source.offset, finding.model.name) == (7, "pneumonia")
    assert finding.backend == "onnxruntime-cpu"
    assert finding.activation_png is not None
    assert len(finding.activation_png) <= MAX_ACTIVATION_BYTES


async def test_a_finding_is_the_same_bytes_again(bench: Bench) -> None:
    for number in range(2):
        bench.settings = bench.settings.model_copy(update={"group": f"{bench.settings.group[:100]}{number}"})
        await bench.again().take(PLACE, record(1, inline(png(1))))
    first, second = bench.published.messages
    assert first == second


@pytest.mark.parametrize(
    ("sent", "reason", "path"),
    [
        (Record(1, T0, b"p1", b""), "empty", "$"),
        (Record(1, T0, b"p1", b"{"), "invalid-json", "$"),
        (Record(1, T0, b"p1", b'{"a":' * 100_000), "too-deep", "$"),
        (Record(1, T0, b"p1", b"{}"), "invalid-message", "$"),
        (Record(1, T0, b"p1", b"x" * ((12 << 20) + 1)), "too-large", "$"),
        (record(1, inline(png(1)))._replace(key=b"p2"), "key-mismatch", "$.patient"),
        (record(1, inline(png(1)))._replace(key=None), "key-mismatch", "$.patient"),
        (record(1, inline(png(1)))._replace(timestamp=T0 + 5000), "implausible-time", "$.time"),
        (
            record(1, inline(png(1)))._replace(headers=(("content-type", b"text/plain"),)),
            "unsupported-content-type",
            "$",
        ),
        (record(1, {"type": "inline", "content": "!"}), "invalid-message", "$.image.content"),
        (record(1, {"type": "tape"}), "invalid-message", "$.image.type"),
        (record(1, dicomweb("1.9")), "not-found", "$.image"),
        (record(1, inline(b"\x89PNG no")), "damaged-file", "$.image"),
    ],
)
async def test_what_is_at_fault_becomes_a_dead_letter(
    bench: Bench, sent: Record, reason: str, path: str
) -> None:
    assert await bench.path.take(PLACE, sent) == "dead_lettered"
    (letter,) = bench.published.letters()
    assert (letter.reason, letter.rejections[0].path) == (reason, path)
    assert (letter.source.topic, letter.source.offset) == ("imaging", 1)
    assert bench.published.findings() == []


async def test_a_key_that_stands_twice_is_refused(bench: Bench) -> None:
    value = record(1, inline(png(1))).value.replace(b'"patient":"p1"', b'"patient":"p1","patient":"p1"')  # type: ignore[union-attr]
    assert await bench.path.take(PLACE, Record(1, T0, b"p1", value)) == "dead_lettered"
    assert bench.published.letters()[0].reason == "duplicate-key"


async def test_an_image_is_scored_once_however_often_it_comes(bench: Bench) -> None:
    records = [record(offset, inline(png(1))) for offset in range(6)]
    fates = await asyncio.gather(*(bench.path.take(PLACE, sent) for sent in records[:4]))
    fates.append(await bench.path.take(PLACE, records[4]))
    fates.append(await bench.again().take(PLACE, records[5]))  # a new process knows it from Redis
    assert sorted(fates) == ["duplicate"] * 5 + ["scored"]
    assert len(bench.published.findings()) == 1


async def test_one_file_for_two_patients_gives_two_findings(bench: Bench) -> None:
    for offset, patient in enumerate(("p1", "p2")):
        assert await bench.path.take(PLACE, record(offset, inline(png(1)), patient)) == "scored"
    first, second = bench.published.findings()
    assert first.id != second.id
    assert first.image_sha256 == second.image_sha256


@pytest.mark.parametrize("first", [True, False])
async def test_a_known_reference_is_not_fetched_again(bench: Bench, first: bool) -> None:
    file = dicom(of_class(1, 28, np.random.default_rng(1)), SOPInstanceUID="1.5")
    bench.sources.held["1.5"] = png(1) if first else file
    assert await bench.path.take(PLACE, record(0, dicomweb("1.5", rendered=first))) == "scored"
    for offset, rendered in enumerate((True, False), start=1):
        assert await bench.path.take(PLACE, record(offset, dicomweb("1.5", rendered))) == "duplicate"
    assert await bench.path.take(PLACE, record(3, inline(file))) == "duplicate"
    assert await bench.path.take(PLACE, record(4, dicomweb("1.5", rendered=first), "p2")) == "scored"
    assert bench.sources.asked == ["1.5", "1.5"]


async def test_records_wait_for_a_source_and_others_pass_them(bench: Bench) -> None:
    came = asyncio.Event()

    async def hook(event: Any) -> None:
        if not hasattr(event.image, "content"):
            await came.wait()

    bench.sources.hook = hook
    bench.sources.held = {f"1.{i}": png(i) for i in range(10)}
    waiting = [
        asyncio.create_task(bench.path.take(PLACE, record(i, dicomweb(f"1.{i}", rendered=True))))
        for i in range(10)
    ]
    async with asyncio.timeout(10):
        assert await bench.path.take(PLACE, record(20, inline(png(30)))) == "scored"
    assert not any(task.done() for task in waiting)
    assert bench.path.in_flight == 10
    came.set()
    assert set(await asyncio.gather(*waiting)) == {"scored"}
    assert bench.path.in_flight == 0


async def test_an_engine_that_does_not_answer_is_waited_for(
    engine: Engine, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True

    def fail_or_not(inputs: Any, rows: int) -> Any:
        if broken:
            raise BackendError("broken")
        return works(inputs, rows)

    works = engine._execute
    monkeypatch.setattr(engine, "_execute", fail_or_not)
    monkeypatch.setattr(imaging, "RETRY_S", 0.05)
    golden = {"in/image": np.zeros((1, 1, 28, 28), np.float32)}
    golden |= {f"out/{k}": v for k, v in _run(works, golden).items()}
    bench = Bench(engine, redis_settings, lambda: repository.verify(engine, golden))
    steps = [Step() for _ in range(5)]

    async def take(number: int) -> Fate:
        follow(steps[number])
        return await bench.path.take(PLACE, record(number, inline(png(number))))

    tasks = [asyncio.create_task(take(number)) for number in range(5)]
    async with asyncio.timeout(10):
        await asyncio.sleep(0.3)
        assert bench.path.engine_away
        assert {step.since for step in steps} == {None}
        assert not any(task.done() for task in tasks)
        broken = False
        assert set(await asyncio.gather(*tasks)) == {"scored"}
    assert bench.published.letters() == []
    assert not bench.path.engine_away
    await bench.close()


def _run(works: Callable[[Any, int], Any], golden: dict[str, F32]) -> dict[str, F32]:
    outputs: dict[str, F32] = works({"image": golden["in/image"]}, 1)
    return outputs


def failures(engine: Engine, reason: str) -> float:
    """Failed calls of this model's engine; a process with both roles has another's beside it."""
    return sample("riskstream_engine_failures_total", model=engine.config.name, reason=reason)


async def test_a_picture_on_which_the_engine_fails_is_a_dead_letter(
    engine: Engine, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = wanted(engine)
    bad = images.read(png(3), poison).image
    works = engine._execute

    def fail(inputs: Any, rows: int) -> Any:
        if any((row == bad).all() for row in inputs["image"]):
            raise BackendError("this one")
        return works(inputs, rows)

    monkeypatch.setattr(engine, "_execute", fail)
    counted = failures(engine, "backend")
    fates = await asyncio.gather(*(bench.path.take(PLACE, record(i, inline(png(i)))) for i in range(5)))
    assert fates == ["scored", "scored", "scored", "dead_lettered", "scored"]
    assert bench.published.letters()[0].reason == "inference-failed"
    assert failures(engine, "backend") > counted


async def test_a_hung_engine_stops_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.batcher.hung = True
    with pytest.raises(EngineHungError):
        await bench.path.take(PLACE, record(1, inline(png(1))))
    bench.batcher.hung = False


async def test_without_redis_it_goes_on_and_writes_what_was_missed(
    bench: Bench, redis_settings: Settings
) -> None:
    away = settings_of.load(redis="redis://127.0.0.1:9/0", redis_timeout_s=0.2)
    namespace = f"c:{redis_settings.group}:t"
    scored = ScoredImages(bench.redis(away), namespace, 1.0)
    bench.path._scored = scored
    assert await bench.path.take(PLACE, record(1, inline(png(1)))) == "scored"
    assert await bench.path.take(PLACE, record(2, inline(png(1)))) == "duplicate"
    assert not scored.redis_up
    scored._redis = bench.redis(redis_settings)
    await scored.look()
    assert scored.redis_up
    assert await bench.again().take(PLACE, record(3, inline(png(1)))) == "duplicate"


async def test_what_redis_holds_names_nobody_and_expires(bench: Bench, redis_settings: Settings) -> None:
    await bench.path.take(PLACE, record(1, inline(png(1)), "MRN-4711"))
    redis = bench.redis(redis_settings)
    (key,) = [key async for key in redis.scan_iter(f"riskstream:{{c:{redis_settings.group}:t:images}}:*")]
    assert b"4711" not in key
    assert 0 < await redis.ttl(key) <= 3600


def test_a_finding_id_is_of_image_patient_and_model() -> None:
    base = finding_id("i", "p", "m")
    assert base == finding_id("i", "p", "m")
    assert len({base, finding_id("j", "p", "m"), finding_id("i", "q", "m"), finding_id("i", "p", "n")}) == 4


@pytest.mark.parametrize("size", [300_000, 10])
async def test_the_activation_map_is_kept_small(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    tried = []

    def overlay(picture: F32, evidence: F32, side: int) -> bytes:
        tried.append(side)
        return b"x" * size

    monkeypatch.setattr(imaging, "overlay", overlay)
    await bench.path.take(PLACE, record(1, inline(png(1))))
    (finding,) = bench.published.findings()
    assert (finding.activation_png is None) == (size > MAX_ACTIVATION_BYTES)
    assert tried == ([224, 160, 112] if size > MAX_ACTIVATION_BYTES else [224])
    assert json.loads(bench.published.messages[0].value)["risk"] == finding.risk


async def test_a_version_swapped_in_between_scores_pictures_of_its_own_size(
    bench: Bench, engine: Engine
) -> None:
    """One of another size comes while a picture is decoded: the picture is decoded anew, for it."""
    config = engine.config
    larger = ImageInput(32, 32)
    taken: list[tuple[int, ...]] = []

    async def run(inputs: Tensors) -> dict[str, F32]:
        taken.append(inputs["image"].shape)
        return await bench.batcher.infer({"image": inputs["image"][:, :, 2:30, 2:30]})

    config = msgspec.structs.replace(config, version=2, digest="2" * 64, image=larger)
    second = Served(config, engine.backend, run)
    decode = bench.sources.decode

    async def swap(original: Original, event: ImagingEvent, wanted: ImageInput) -> Decoded | Refusal:
        found = await decode(original, event, wanted)
        bench.serving.current = second
        return found

    bench.sources.decode = swap  # type: ignore[method-assign]
    assert await bench.path.take(PLACE, record(1, inline(png(1)))) == "scored"
    (finding,) = bench.published.findings()
    assert (finding.model.version, finding.model.digest) == (2, "2" * 64)
    assert taken == [(1, 1, 32, 32)]


async def test_an_engine_that_fails_is_replaced_within_the_picture(bench: Bench, engine: Engine) -> None:
    async def down(inputs: Tensors) -> dict[str, F32]:
        raise EngineDownError("the device is gone")

    broken = Served(engine.config, "tensorrt", down)
    bench.serving.current = broken

    async def instead(failed: Served, reason: str) -> Served:
        bench.serving.current = bench.served
        return bench.served

    bench.serving.instead = instead  # type: ignore[method-assign]
    counted = failures(engine, "engine-down")
    assert await bench.path.take(PLACE, record(1, inline(png(1)))) == "scored"
    assert bench.published.findings()[0].backend == engine.backend
    assert failures(engine, "engine-down") == counted + 1


async def test_a_picture_that_hangs_is_found_whatever_becomes_of_the_others(bench: Bench) -> None:
    hangs, others = ImagingLane(PLACE, stages := stages_of(bench)), ImagingLane(PLACE, stages)
    never = asyncio.Event()

    async def hook(event: ImagingEvent) -> None:
        if event.patient == "hangs":
            await never.wait()

    bench.sources.hook = hook
    bench.sources.away = 1  # that of one more
    await until(lambda: hangs.has_room and others.has_room)
    hangs.put(Chunk(0, [record(0, inline(png(0)), patient="hangs")]))
    await asyncio.sleep(0.1)
    hangs.watch()
    since = hangs.stuck_since
    others.put(Chunk(0, [record(number, inline(png(number))) for number in range(3)]))
    await until(lambda: others.lag() == 97)
    hangs.watch()
    assert since is not None
    assert hangs.stuck_since == since
    await asyncio.gather(hangs.stop(0.02), others.stop(0.02))


def stages_of(bench: Bench) -> ImagingStages:
    return ImagingStages(bench.path, Log(), Room(1 << 20), 0.01)
