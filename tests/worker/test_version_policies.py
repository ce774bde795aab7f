"""Each finding is decided on by the policy of the version that made it, whichever is served by then."""

import asyncio
import errno
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engines import repository
from engines.engine import Engine
from engines.errors import RepositoryError
from schemas.messages import Alert, ModelReference
from schemas.model_config import Level, ModelConfig
from tests.worker.records import HOUR, PLACE, PNEUMONIA, T0, LocalPath
from tests.worker.shelf import published
from tests.worker.test_audit import alerts_of, verdicts
from tests.worker.test_findings import beat, pictured
from worker import config, version_policies
from worker.audit import Auditor
from worker.config import Settings
from worker.policies import Policies, shipped
from worker.policy_source import follow_imaging
from worker.rerun import Rerun

SECOND = msgspec.structs.replace(
    PNEUMONIA,
    version=2,
    policy=msgspec.structs.replace(
        PNEUMONIA.policy,
        version="second",
        levels=(Level("elevated", 0.3), Level("high", 0.8)),
        exit=0.1,
        expiry_s=36 * 3600.0,
    ),
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a repository with two versions of the image model, the first one served."""
    for name in ("vitals", "pneumonia"):
        shutil.copytree(repository.SHIPPED / name, tmp_path / name)
    put(tmp_path, PNEUMONIA, "1")
    put(tmp_path, SECOND, "2")
    return config.load(model_repository=tmp_path, topic_vitals=PLACE.topic)


def put(models: Path, model: ModelConfig, folder: str = "") -> None:
    """Write a version's config: the served one's unless a folder is named."""
    target = models / model.name / folder
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes(msgspec.json.encode(model))


def by(version: int) -> dict[str, object]:
    return {"name": PNEUMONIA.name, "version": version, "digest": "d" * 64}


RECORDS = [
    pictured(0, "p", T0, 0.4, model=by(1)),
    pictured(1, "p", T0 + HOUR, 0.4, model=by(2)),
    pictured(2, "q", T0, 0.4, model=by(2)),
    pictured(3, "r", T0, 0.95, model=by(1)),
    beat(4, "q", T0 + 37 * HOUR),
    beat(5, "r", T0 + 37 * HOUR),
    beat(6, "r", T0 + 49 * HOUR),
]


def imaged(path: LocalPath) -> list[Alert]:
    """The alerts that findings raised."""
    told = path.outbox.by_voice().get(PNEUMONIA.name, [])
    return [msgspec.json.decode(message.value or b"", type=Alert) for message in told]


async def told(engine: Engine, policies: Policies) -> list[bytes | None]:
    path = LocalPath(engine)
    path.pipeline.policies = policies
    await path.process(RECORDS)
    return [message.value for message in path.outbox.by_voice()[PNEUMONIA.name]]


async def test_the_version_that_made_a_finding_decides_whichever_is_served(
    engine: Engine, settings: Settings
) -> None:
    first = await told(engine, shipped(settings, engine.config))
    put(settings.model_repository, SECOND)
    assert await told(engine, shipped(settings, engine.config)) == first

    alerts = [msgspec.json.decode(value or b"", type=Alert) for value in first]
    assert [(a.patient, a.transition, a.threshold, a.policy_version, a.model.version) for a in alerts] == [
        ("p", "raised", 0.3, "second", 2),
        ("q", "raised", 0.3, "second", 2),
        ("r", "raised", 0.9, "1", 1),
        ("q", "expired", 0.3, "second", 2),
        ("r", "expired", 0.9, "1", 1),
    ]
    ended = {a.patient: a.time.timestamp() * 1000 for a in alerts if a.transition == "expired"}
    assert ended == {"q": T0 + 36 * HOUR, "r": T0 + 48 * HOUR}


async def test_alerts_are_verified_after_another_version_came_to_be_served(
    engine: Engine, settings: Settings
) -> None:
    shelf, _ = await published(engine, RECORDS, shipped(settings, engine.config))
    alerts = await alerts_of(shelf)
    put(settings.model_repository, SECOND)
    rerun = Rerun(engine, shipped(settings, engine.config), settings)
    try:
        found = await Auditor(shelf, rerun, settings, PLACE.cluster).verify(alerts)
    finally:
        await rerun.close()
    assert len(alerts) == 5
    assert set(verdicts(found)) == {"verified"}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():  # noqa: ASYNC110 - what is awaited sets no event
            await asyncio.sleep(0.01)


async def test_the_served_versions_policy_is_followed_and_stands_in_for_one_that_is_not_there(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.policy_source.LOOK_S", 0.01)
    models, third = settings.model_repository, msgspec.structs.replace(SECOND, version=3)
    policies = shipped(settings, engine.config)
    top = models / PNEUMONIA.name / "config.json"

    def of(version: int) -> str:
        made = ModelReference(PNEUMONIA.name, version, "d" * 64)
        return policies.imaging(made, "p", None, 0).version

    async def served() -> ModelConfig:
        return repository.read_config(models, PNEUMONIA.name)

    assert (of(1), of(2), of(3)) == ("1", "second", "1")
    following = asyncio.create_task(follow_imaging(policies, served))
    try:
        put(models, third, "3")
        await until(lambda: of(3) == "second")
        put(models, SECOND)
        await until(lambda: policies.shipped["imaging"].version == "second")
        assert (of(1), of(2), of(4)) == ("1", "second", "second")
        top.write_text("{")
        with pytest.raises(RepositoryError):
            await served()
        await asyncio.sleep(0.1)
        assert policies.shipped["imaging"].version == "second"
        mended = msgspec.structs.replace(SECOND.policy, version="mended")
        put(models, msgspec.structs.replace(SECOND, policy=mended))
        await until(lambda: policies.shipped["imaging"].version == "mended")
        assert of(2) == "mended"
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_version_that_came_a_moment_ago_is_found_before_its_finding_is_judged(
    engine: Engine, settings: Settings
) -> None:
    policies = shipped(settings, engine.config)
    put(settings.model_repository, msgspec.structs.replace(SECOND, version=3), "3")
    path = LocalPath(engine)
    path.pipeline.policies = policies
    await path.process([pictured(0, "p", T0, 0.4, model=by(3))])
    (alert,) = imaged(path)
    assert (alert.policy_version, alert.model.version) == ("second", 3)


async def test_a_repository_that_hangs_holds_up_findings_of_unknown_versions_alone_and_not_for_long(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies, free = shipped(settings, engine.config), threading.Event()

    def hang(*_: object) -> list[int]:
        free.wait(20)
        return []

    monkeypatch.setattr(repository, "versions", hang)
    monkeypatch.setattr(version_policies, "PATIENCE_S", 0.3)
    path = LocalPath(engine)
    path.pipeline.policies = policies
    beats = 0

    async def beating() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beside = asyncio.create_task(beating())
    try:
        async with asyncio.timeout(0.25):
            await path.process([pictured(0, "p", T0, 0.4, model=by(2)), beat(1, "q", T0)])
        async with asyncio.timeout(10):
            await path.process([pictured(2, "r", T0, 0.95, model=by(7))])
            started = time.perf_counter()
            await path.process([pictured(3, "s", T0, 0.95, model=by(7))])
            assert time.perf_counter() - started < 0.3, "it is asked for once in a while only"
        assert beats > 10, "the loop stood still"
    finally:
        beside.cancel()
        free.set()
    told = [(a.patient, a.policy_version) for a in imaged(path)]
    assert told == [("p", "second"), ("r", "1"), ("s", "1")]


async def test_a_version_that_cannot_be_read_for_a_moment_is_read_again_before_it_is_judged(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies, left = shipped(settings, engine.config), [2]
    put(settings.model_repository, msgspec.structs.replace(SECOND, version=3), "3")
    is_file = Path.is_file

    def failing(path: Path) -> bool:
        if path.parent.name == "3" and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", failing)
    path = LocalPath(engine)
    path.pipeline.policies = policies
    await path.process([pictured(0, "p", T0, 0.4, model=by(3))])
    assert left == [0]
    assert [alert.policy_version for alert in imaged(path)] == ["second"]


async def test_a_version_folder_that_may_not_be_read_stops_nothing(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.policy_source.LOOK_S", 0.01)
    monkeypatch.setattr(version_policies, "PATIENCE_S", 0.3)
    is_file = Path.is_file

    def forbidden(path: Path) -> bool:
        if path.parent.name == "2":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    policies = shipped(settings, engine.config)
    monkeypatch.setattr(Path, "is_file", forbidden)

    async def served() -> ModelConfig:
        return repository.read_config(settings.model_repository, PNEUMONIA.name)

    following = asyncio.create_task(follow_imaging(policies, served))
    path = LocalPath(engine)
    path.pipeline.policies = policies
    await path.process([pictured(0, "p", T0, 0.4, model=by(2))])
    await asyncio.sleep(0.1)
    assert not following.done()
    following.cancel()
    assert [alert.policy_version for alert in imaged(path)] == ["second"], "it is held"
    afresh = LocalPath(engine)
    afresh.pipeline.policies = shipped(settings, engine.config)
    await afresh.process([pictured(0, "p", T0, 0.95, model=by(2))])
    assert [alert.policy_version for alert in imaged(afresh)] == ["1"], "the served version's stands in"
    with pytest.raises(RepositoryError, match=r"cannot read .*2/config.json: Permission denied"):
        repository.read_config(settings.model_repository, PNEUMONIA.name, 2)
