"""How long a picture is waited for.

An object that is at fault is tried a few times: a picture may be announced before it is stored. A source that
is away is waited for without limit, because nothing is wrong with the pictures of a server that is restarted;
those tries and that time do not count.
"""

import asyncio
import random
import time
from typing import NamedTuple

import structlog

from schemas.imaging import DicomwebImage, FileImage, ImagingEvent, InlineImage, ObjectImage
from worker import metrics
from worker.config import Settings
from worker.errors import FetchFailedError, FetchRefusedError, SourceAwayError
from worker.fetch import Fetched, Fetcher
from worker.imaging_steps import waiting

log = structlog.get_logger("riskstream")

_SOURCES = {InlineImage: "inline", FileImage: "file", DicomwebImage: "dicomweb", ObjectImage: "object"}


class Patience(NamedTuple):
    """Times in seconds.

    tries: of an object at fault.
    failing_s: how long those tries may go on, without the time that the source was away.
    try_s: the longest that a try takes by itself; what it takes beyond that, it waited for others to be done.
    first_s, longest_s: waits double from one to the other; each is cut by up to a half, at random.
    retry_after_s: the longest that a server's Retry-After is obeyed.
    """

    tries: int
    failing_s: float
    try_s: float
    first_s: float
    longest_s: float
    retry_after_s: float

    @classmethod
    def of(cls, settings: Settings) -> "Patience":
        """As the settings say."""
        return cls(
            settings.imaging_fetch_tries,
            settings.imaging_patience_s,
            settings.imaging_fetch_timeout_s + settings.imaging_connect_timeout_s,
            settings.imaging_backoff_s,
            settings.imaging_backoff_max_s,
            settings.imaging_retry_after_max_s,
        )

    def wait_s(self, failures: int) -> float:
        """The wait after a number of failures in a row, from 1."""
        whole = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return whole * random.uniform(0.5, 1.0)


async def fetch_patiently(fetcher: Fetcher, event: ImagingEvent, patience: Patience) -> Fetched:
    """The bytes of an event's picture, however long its source is away.

    Every try is counted in the metrics. Cancel it to give up.

    Raises:
        FetchRefusedError: at once.
        FetchFailedError: after the last try; its `reason` is that try's.
    """
    source = _SOURCES[type(event.image)]
    failures, absences, failing_s = 0, 0, 0.0
    while True:
        began = time.perf_counter()
        try:
            fetched = await _told(fetcher, event, source)
        except SourceAwayError as error:
            absences += 1
            if absences == 1:
                log.warning("pictures wait for their source", source=source, reason=error.reason)
            asked_s = min(error.retry_after_s or 0.0, patience.retry_after_s)
            with waiting():
                await asyncio.sleep(max(asked_s, patience.wait_s(absences)))
        except FetchFailedError:
            absences = 0
            failures += 1
            wait_s = patience.wait_s(failures)
            failing_s += min(time.perf_counter() - began, patience.try_s) + wait_s
            if failures >= patience.tries or failing_s > patience.failing_s:
                raise
            with waiting():
                await asyncio.sleep(wait_s)
        else:
            if absences:
                log.info("the source of pictures answers again", source=source)
            return fetched


async def _told(fetcher: Fetcher, event: ImagingEvent, source: str) -> Fetched:
    """One try, told to the metrics."""
    began = time.perf_counter()
    outcome = "cancelled"
    try:
        fetched = await fetcher.fetch(event)
        outcome = "fetched"
        metrics.fetch_bytes.inc(len(fetched.content))
        return fetched
    except FetchRefusedError:
        outcome = "refused"
        raise
    except FetchFailedError:
        outcome = "failed"
        raise
    except SourceAwayError:
        outcome = "away"
        raise
    finally:
        metrics.fetches.labels(source, outcome).inc()
        metrics.fetch_duration.labels(source).observe(time.perf_counter() - began)
