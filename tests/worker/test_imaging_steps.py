"""No step of a picture outlasts the time from which the imaging role counts as stuck, slow as it may be."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import ImageError
from schemas.model_config import ImageInput
from tests.worker.pacs import file
from worker import config, decoder, fetch
from worker.decoder import Decoders
from worker.errors import SourceAwayError
from worker.fetch import Fetcher
from worker.imaging_app import stalled_after_s

RUNBOOK = Path(__file__).parents[2] / "docs/runbook.md"


async def test_a_file_whose_threads_and_mount_hang_takes_no_longer_than_its_try_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, hung = threading.Event(), tmp_path / "p.png"
    settings = config.load(
        imaging_roots=str(tmp_path),
        imaging_fetch_concurrency=1,
        imaging_fetch_timeout_s=0.6,
        imaging_connect_timeout_s=0.4,
    )
    fetcher = Fetcher(settings)
    threads, probes = fetcher._files._threads, fetcher._files._probes
    monkeypatch.setattr(fetcher._files, "_read", lambda path, size: back.wait(20))
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **more: back.wait(20) if str(path).endswith("/.") else real(path, **more)
    )
    await threads._free.acquire()
    await probes._free.acquire()
    began = time.perf_counter()
    _later(0.5, threads._free.release)
    _later(0.5 + 0.6 + 0.3, probes._free.release)
    with pytest.raises(SourceAwayError):
        await fetcher.fetch(file(hung))
    took_s = time.perf_counter() - began
    back.set()
    await fetcher.close()
    assert took_s > 1.7  # half a second and more for the thread, the read, nearly as much again for the probe
    assert fetch.longest_s(settings) > 1.8
    assert stalled_after_s(config.load(imaging_fetch_timeout_s=900)) > 1800


def _later(seconds: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, call)


async def test_a_picture_whose_decoders_are_slow_and_lost_takes_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder, "START_S", 4.0)
    monkeypatch.setattr(decoder, "GRACE_S", 0.4)
    decoders = Decoders(1, 0.5, 128, "tests.worker.slow_decoder")
    began = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        await decoders.decode(b"picture", ImageInput(height=8, width=8))
    took_s = time.perf_counter() - began
    await decoders.close()
    assert caught.value.reason == "decode-crashed"
    assert took_s > 2 * (1.2 + 0.5 + 0.4)  # two starts, two pictures, two decoders that must be killed
    assert decoder.longest_s(0.5) >= took_s


@pytest.mark.parametrize(
    ("settings", "least_s"),
    [
        ({}, 2 * (60 + 20)),  # two decoders that start late and are lost
        ({"imaging_decode_timeout_s": 300}, 2 * (60 + 300)),
        ({"backend": "tensorrt"}, 300),  # a step down loads the engine that stands in
        ({"publish_timeout_s": 300}, 300),
        ({"stall_after_s": 5}, 2 * (60 + 20)),
        ({"stall_after_s": 4000}, 4000),
    ],
)
def test_the_role_is_not_stuck_before_its_slowest_part_may_be(
    settings: dict[str, Any], least_s: float
) -> None:
    assert least_s <= stalled_after_s(config.load(**settings)) < 1.3 * least_s + 10


def test_how_long_a_hang_goes_unseen_is_documented() -> None:
    told = RUNBOOK.read_text()
    assert f"{stalled_after_s(config.load()):.0f} s by default" in told
    assert f"{stalled_after_s(config.load(backend='tensorrt')):.0f} s with a backend on a GPU" in told
