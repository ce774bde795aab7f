"""Decoder processes: what a file can do to one, and what it cannot do to the worker or to other pictures."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from engines import image_folder, images
from engines.decoded import Words
from engines.errors import ExtraError, ImageError
from engines.limits import MAX_BYTES
from schemas.model_config import ImageInput
from tests.engines.dicom_files import seeds
from tests.engines.pictures import dicom
from worker import config, decoder
from worker.decoder import Decoders
from worker.errors import DecoderError

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "tests.worker.hostile_decoder"
SMALL = ImageInput(height=8, width=8)
SEVERAL = {"frames", "SC_rgb_rle_2frame", "rtdose"}
"""Seeds of several frames, of which training takes none."""

RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12)
GOOD = dicom(RAMP, WindowCenter=128, WindowWidth=256, Modality="DX", ViewPosition="PA")


@pytest.fixture
async def hostile() -> AsyncIterator[Decoders]:
    """One decoder that misbehaves on demand, with little time and memory."""
    async with Decoders(1, 1.0, 128, HOSTILE) as decoders:
        yield decoders


OTHERS: set[int] = set()
"""Processes that this one had started before the test."""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process and no file descriptor outlives its pool; servers of other tests may be there throughout."""
    OTHERS.clear()
    OTHERS.update(children(os.getpid()))
    before = open_files()
    yield
    assert not begun()
    assert open_files() <= before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def begun() -> set[int]:
    """Processes that this test has started."""
    return children(os.getpid()) - OTHERS


def children(pid: int) -> set[int]:
    """Processes that a process has started and not waited for: zombies are among them."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for found in lists for child in found.read_text().split()}


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def reason_of(decoders: Decoders, content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        await decoders.decode(content, SMALL)
    assert "4711" not in str(caught.value)
    return caught.value.reason


async def goes_on(decoders: Decoders) -> bool:
    return (await decoders.decode(GOOD, SMALL)).modality == "DX"


async def test_a_picture_comes_back_as_it_is_read_here() -> None:
    wanted = ImageInput(height=16, width=16, channels=3, view=("PA",))
    async with Decoders(1, 20, 256) as decoders:
        made = await decoders.decode(GOOD, wanted, hints=Words("", "chest", "ap"))
    expected = images.read(GOOD, wanted, hints=Words("", "chest", "ap"))
    np.testing.assert_array_equal(made.image, expected.image)
    assert made.image.dtype == expected.image.dtype == np.float32
    assert made.image.flags.writeable
    assert made[1:] == expected[1:]
    assert made[1:6] == (8, 12, "DX", "CHEST", "PA")


async def test_what_is_served_is_what_was_learnt_from(tmp_path: Path) -> None:
    """Every syntax, PNG and JPEG: training's reading and a decoder process give the same bits."""
    files = {name: content for name, content in seeds().items() if name not in SEVERAL}
    with (tmp_path / image_folder.LABELS).open("w") as labels:
        labels.write("file,label\n")
        for number, (name, content) in enumerate(files.items()):
            (tmp_path / f"{number}.bin").write_bytes(content)
            labels.write(f"{number}.bin,{name.replace(',', '')}\n")
    learnt = image_folder.read(tmp_path)
    for wanted in (ImageInput(height=33, width=47), ImageInput(height=64, width=64, channels=3, fit="crop")):
        async with Decoders(2, 20, 512) as decoders:
            served = await asyncio.gather(*(decoders.decode(file, wanted) for file in files.values()))
        for place, made in enumerate(served):
            expected = images.prepare(learnt.read(place, wanted), wanted)
            np.testing.assert_array_equal(made.image, expected, strict=True)


async def test_a_refusal_comes_back_with_its_reason(hostile: Decoders) -> None:
    assert await reason_of(hostile, b"GIF89a") == "not-an-image"
    assert await reason_of(hostile, dicom(RAMP, NumberOfFrames=2)) == "several-frames"
    assert await reason_of(hostile, dicom(RAMP, BurnedInAnnotation="YES")) == "burned-in"
    burned = dicom(RAMP, BurnedInAnnotation="YES")
    assert "burned-in" in (await hostile.decode(burned, SMALL, allow_burned_in=True)).flags
    assert await reason_of(hostile, bytes(MAX_BYTES + 1)) == "too-large"


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (b"sleep 30", "decode-timeout"),
        (b"spin", "decode-timeout"),
        (b"allocate 300", "decode-memory"),
        (b"segfault", "decode-crashed"),
        (b"abort", "decode-crashed"),
        (b"exit", "decode-crashed"),
        (b"raise", "decode-crashed"),
        (b"kill SIGKILL", "decode-crashed"),
        (b"kill SIGXCPU", "decode-timeout"),
        (b"kill SIGSTOP", "decode-timeout"),
        (b"flood", "decode-crashed"),
        (b"fork", "decode-crashed"),
    ],
)
async def test_a_picture_ends_its_own_child_alone(hostile: Decoders, order: bytes, reason: str) -> None:
    if order == b"fork" and os.geteuid() == 0:
        pytest.skip("the kernel does not count the processes of root")
    (pid,) = hostile.pids
    start = time.perf_counter()
    assert await reason_of(hostile, order) == reason
    assert time.perf_counter() - start < 1.0 + decoder.GRACE_S
    assert await goes_on(hostile)
    assert hostile.pids == [pid], "the decoder itself has lived on"


async def test_memory_that_a_picture_may_take_is_there(hostile: Decoders) -> None:
    assert (await hostile.decode(b"allocate 60", SMALL)).height == 60
    assert 60 << 20 < hostile.peak_bytes < 300 << 20


@pytest.mark.parametrize(
    "lie",
    [
        b"forge identity 'patient-4711'",
        b"forge identity ''",
        b"forge modality 'john^doe'",
        b"forge flags ('patient-4711',)",
        b"forge height 0",
        b"forge height 2**40",
        b"forge view 'A'*65",
        b"forge image np.full((1,8,8),np.nan)",
        b"forge image np.full((1,8,8),1.5)",
        b"forge image np.zeros((1,8,9))",
        b"forge image np.zeros((0,))",
    ],
)
async def test_an_answer_is_believed_only_in_its_form(hostile: Decoders, lie: bytes) -> None:
    assert (await hostile.decode(b"forge height 9", SMALL)).height == 9
    assert await reason_of(hostile, lie) == "decode-crashed"
    assert await goes_on(hostile)


async def test_an_extra_that_is_not_installed_is_no_fault_of_the_picture(hostile: Decoders) -> None:
    with pytest.raises(ExtraError, match=r"pip install 'riskstream\[dicom\]'"):
        await hostile.decode(b"extra", SMALL)
    assert await goes_on(hostile)


async def test_every_picture_has_a_child_of_its_own(hostile: Decoders) -> None:
    pids = {(await hostile.decode(b"pid", SMALL)).width for _ in range(3)}
    assert len(pids) == 3
    assert not any(is_running(pid) for pid in pids)


async def test_a_child_has_nothing_of_the_workers_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RISKSTREAM_REDIS_PASSWORD", "hunter2")
    async with Decoders(1, 5, 128, HOSTILE) as decoders:
        environment = environment_of(decoders.pids[0])
    assert "PYTHONPATH" in environment
    assert "hunter2" not in environment
    assert "HOME" not in environment


async def test_what_a_library_prints_goes_nowhere(
    hostile: Decoders, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await reason_of(hostile, b"write") == "not-an-image"
    assert await goes_on(hostile)
    assert capfd.readouterr() == ("", "")


async def test_a_hundred_crashes_leak_nothing() -> None:
    async with Decoders(2, 5, 128, HOSTILE) as decoders:
        await goes_on(decoders)
        before, pids = open_files(), decoders.pids
        reasons = [await reason_of(decoders, b"segfault") for _ in range(100)]
        assert set(reasons) == {"decode-crashed"}
        assert open_files() == before
        assert begun() == set(pids)
        assert not any(children(pid) for pid in pids)
        assert await goes_on(decoders)


async def test_a_decoder_that_was_killed_is_replaced_and_no_picture_blamed(hostile: Decoders) -> None:
    (pid,) = hostile.pids
    os.kill(pid, signal.SIGKILL)
    assert await goes_on(hostile)
    asked = asyncio.create_task(hostile.decode(b"sleep 0.5", SMALL))
    await asyncio.sleep(0.2)
    os.kill(hostile.pids[0], signal.SIGKILL)
    with pytest.raises(ImageError) as caught:
        await asked
    assert caught.value.reason == "not-an-image", "it was decoded by the next process"
    assert hostile.pids != [pid]


async def test_a_picture_that_kills_its_decoder_again_is_blamed(hostile: Decoders) -> None:
    (pid,) = hostile.pids
    assert await reason_of(hostile, b"patricide") == "decode-crashed"
    assert not hostile.pids
    assert await goes_on(hostile)
    assert hostile.pids != [pid]


async def test_a_pool_that_closes_while_a_decoder_starts_leaves_nothing() -> None:
    decoders = Decoders(1, 5, 128, HOSTILE)
    asked = asyncio.create_task(decoders.decode(GOOD, SMALL))
    await asyncio.sleep(0.01)
    await decoders.close()
    with suppress(DecoderError):
        await asked
    assert not begun()


async def test_others_go_on_while_one_hangs() -> None:
    async with Decoders(2, 1.5, 128, HOSTILE) as decoders:
        hung = asyncio.create_task(reason_of(decoders, b"sleep 30"))
        await asyncio.sleep(0.05)
        for _ in range(20):
            assert await goes_on(decoders)
        assert not hung.done()
        assert await hung == "decode-timeout"


async def test_a_cancelled_picture_does_not_answer_the_next() -> None:
    async with Decoders(1, 30, 128, HOSTILE) as decoders:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await decoders.decode(b"sleep 20", SMALL)
        start = time.perf_counter()
        assert await goes_on(decoders)
        assert time.perf_counter() - start < 10


async def test_a_cancelled_wait_for_a_decoder_costs_nothing() -> None:
    async with Decoders(1, 1.0, 128, HOSTILE) as decoders:
        busy = asyncio.create_task(reason_of(decoders, b"sleep 20"))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await decoders.decode(GOOD, SMALL)
        assert await busy == "decode-timeout"
        assert await goes_on(decoders)


async def test_waiting_is_bounded(monkeypatch: pytest.MonkeyPatch, hostile: Decoders) -> None:
    monkeypatch.setattr(decoder, "WAITING", 2)
    busy = [asyncio.create_task(reason_of(hostile, b"sleep 20")) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(DecoderError, match="2 pictures wait for 1 decoders"):
        await hostile.decode(GOOD, SMALL)
    assert await asyncio.gather(*busy) == ["decode-timeout"] * 3


async def test_closing_while_busy_ends_everything_at_once() -> None:
    decoders = Decoders(1, 60, 128, HOSTILE)
    await decoders.start()
    asked = [asyncio.create_task(decoders.decode(b"sleep 50", SMALL)) for _ in range(3)]
    await asyncio.sleep(0.2)
    (child,) = children(decoders.pids[0])
    start = time.perf_counter()
    await decoders.close()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert time.perf_counter() - start < 3
    assert [type(end) for end in ends] == [DecoderError] * 3
    assert not is_running(child)
    with pytest.raises(DecoderError, match="closed"):
        await decoders.decode(GOOD, SMALL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_to_the_whole_group_does_not_end_a_picture(number: int) -> None:
    async with Decoders(1, 10, 128, HOSTILE) as decoders:
        asked = asyncio.create_task(decoders.decode(b"sleep 0.5", SMALL))
        await asyncio.sleep(0.2)
        (pid,) = decoders.pids
        assert os.getpgid(pid) == pid, "a signal from the worker's terminal does not reach it"
        os.killpg(pid, number)
        with pytest.raises(ImageError) as caught:
            await asked
        assert caught.value.reason == "not-an-image"
        assert decoders.pids == [pid]


ORPHANS = f"""
import asyncio, sys
from worker.decoder import Decoders
from schemas.model_config import ImageInput

async def main():
    decoders = Decoders(2, 60, 128, "{HOSTILE}")
    await decoders.start()
    print(*decoders.pids, flush=True)
    await decoders.decode(b"sleep 50", ImageInput(height=8, width=8))

asyncio.run(main())
"""


def test_decoders_die_with_a_worker_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        decoders = {int(pid) for pid in worker.stdout.readline().split()}
        busy = await_until(lambda: set().union(*(children(pid) for pid in decoders)))
        worker.kill()
    assert len(decoders) == 2
    assert len(busy) == 1
    await_until(lambda: not any(is_running(pid) for pid in decoders | busy))


def await_until(found: Callable[[], T]) -> T:
    """What is found as soon as it is true; fails after ten seconds."""
    end = time.monotonic() + 10
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


async def test_a_decoder_that_cannot_start_says_so() -> None:
    decoders = Decoders(2, 5, 128, "worker.no_such_module")
    with pytest.raises(DecoderError, match=r"does not start .* -P -m worker.no_such_module"):
        await decoders.start()
    assert not decoders.pids


async def test_settings_make_the_pool() -> None:
    settings = config.load(imaging_decoders=1, imaging_decode_timeout_s=0.001, imaging_decode_memory_mb=64)
    async with Decoders.of(settings) as decoders:
        assert len(decoders.pids) == 1
        assert await reason_of(decoders, GOOD) == "decode-timeout"
