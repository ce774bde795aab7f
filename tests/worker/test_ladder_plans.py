"""The ladder over the real TensorRT for RTX, as far as it goes without a driver: nothing here runs a plan."""

import hashlib
import sys
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from engines import plans, tensorrt_load
from engines.plans import Provenance
from tests.engines.fake_cuda import FakeDriver
from tests.worker.ladders import it_is_time, put, settings, small
from worker.serving import Ladder

pytest.importorskip("tensorrt_rtx", reason="building needs the extra `tensorrt-rtx`")

pytestmark = pytest.mark.tensorrt


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, *small())
    return tmp_path


async def test_without_a_driver_the_reference_serves(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    ladder = Ladder(settings(models, "tensorrt-rtx", infer_timeout_s=60.0))
    await ladder.start()
    assert (ladder.current.rung, ladder.current.backend) == (1, "onnxruntime-cpu")
    await ladder.close()


def all_plans(models: Path) -> list[Path]:
    return list(models.rglob("*.plan"))


async def test_on_a_gpu_without_a_target_the_reference_serves_and_nothing_is_built(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_load, "cuda_driver", lambda: FakeDriver((9, 0)))
    with capture_logs() as said:
        ladder = Ladder(settings(models, "tensorrt-rtx", infer_timeout_s=60.0))
        await ladder.start()
    assert (ladder.current.rung, ladder.current.backend) == (1, "onnxruntime-cpu")
    assert any("has no target sm90" in str(line) for line in said)
    await ladder.close()
    assert all_plans(models) == []


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_damaged_plan_is_built_again_or_refused_by_the_runtime(
    models: Path, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden: the damage stands in the plan's provenance too, so that only the runtime can notice."""
    monkeypatch.setattr(tensorrt_load, "cuda_driver", FakeDriver)
    made = plans.obtain(models, "small", "tensorrt-rtx")
    whole = made.path.read_bytes()
    damaged = whole[:64] + bytes(64) + whole[128:]
    made.path.write_bytes(damaged)
    if hidden:
        digest = hashlib.sha256(damaged).hexdigest()
        told = msgspec.structs.replace(made.provenance, plan_digest=digest)
        made.path.with_suffix(".json").write_bytes(msgspec.json.encode(told))
    ladder = Ladder(settings(models, "tensorrt-rtx", infer_timeout_s=60.0))
    await ladder.start()
    assert ladder.current.rung == 1, "without a driver the runtime loads no plan"
    it_is_time(ladder)
    assert not await ladder.climb()
    await ladder.close()
    now = made.path.read_bytes()
    assert (now == damaged) is hidden
    found = msgspec.json.decode(made.path.with_suffix(".json").read_bytes(), type=Provenance)
    assert found.plan_digest == hashlib.sha256(now).hexdigest()
