"""Pictures in object stores, through fsspec and s3fs (extra `objects`): the only home of both.

Credentials and the store's address are the libraries' own affair: AWS_* and FSSPEC_S3_* variables, or files.
"""

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

from engines.errors import ExtraError
from worker.errors import FetchFailedError, FetchRefusedError, SourceAwayError, SourceDeniedError
from worker.fetch_allowed import OBJECT_PROTOCOL, object_path
from worker.fetch_threads import NoThreadError, Threads


def installed() -> bool:
    """Whether the extra `objects` is."""
    return all(importlib.util.find_spec(name) for name in ("fsspec", "s3fs"))


class ObjectSource:
    """Reads objects in threads of its own."""

    def __init__(
        self, buckets: Sequence[str], *, max_bytes: int, threads: int, seconds: float, probe_s: float
    ) -> None:
        """
        Args:
            buckets: bucket or bucket/prefix, under which objects may be read.
            seconds: how long a read may take.
            probe_s: how long the store may take to answer whether a bucket is there.

        Raises:
            ExtraError: fsspec or s3fs is not installed.
        """
        self._buckets = buckets
        self._max_bytes = max_bytes
        self._threads = Threads("object", threads)
        self._probes = Threads("object", 1)
        self._seconds = seconds
        self._probe_s = probe_s
        self._store = _open_store(probe_s, seconds) if buckets else None

    async def read(self, url: str) -> bytes:
        """The whole object.

        Raises:
            FetchRefusedError: `invalid-reference`, `bucket-not-allowed`, `not-a-file`, `image-too-large`.
            FetchFailedError: `not-found`, `forbidden`, `truncated`, `unreadable`, `too-slow`.
            SourceAwayError: the object cannot be read, and the store denies its bucket or does not answer.
        """
        path = object_path(self._buckets, url)
        try:
            return await self._threads.call(partial(self._read, path), self._seconds)
        except (FetchRefusedError, FetchFailedError):
            raise
        except NoThreadError:
            raise SourceAwayError("every thread that reads objects hangs") from None
        except FileNotFoundError:
            raise FetchFailedError("no such object", reason="not-found") from None
        except PermissionError:
            failure = FetchFailedError("the object may not be read", reason="forbidden")
        except TimeoutError:
            failure = FetchFailedError("the object took too long to read", reason="too-slow")
        except Exception:  # the stores' libraries have no common base of errors
            failure = FetchFailedError("the object cannot be read", reason="unreadable")
        await self._ask_for(path.partition("/")[0], denied=failure.reason == "forbidden")
        raise failure

    def _read(self, path: str) -> bytes:
        assert self._store is not None  # no path lies under no bucket
        facts = self._store.info(path)
        if facts.get("type") != "file":
            raise FetchRefusedError("not an object but a prefix of some", reason="not-a-file")
        size = facts.get("size") or 0
        if size > self._max_bytes:
            raise FetchRefusedError("the object exceeds imaging_max_bytes", reason="image-too-large")
        content: bytes = self._store.cat_file(path, start=0, end=size) if size else b""
        if len(content) != size:
            raise FetchFailedError("the object came in another size than was told", reason="truncated")
        return content

    async def _ask_for(self, bucket: str, *, denied: bool) -> None:
        """Return if the store answers for a bucket; then the object is at fault.

        Args:
            denied: whether the object was denied; if its bucket is too, it is our credentials.
        """
        assert self._store is not None
        try:
            await self._probes.call(partial(self._store.info, bucket), self._probe_s)
        except FileNotFoundError:
            return
        except PermissionError:
            if denied:
                raise SourceDeniedError("the object store does not take our credentials") from None
        except Exception:  # as above; whatever it is, the store did not answer
            raise SourceAwayError("the object store does not answer") from None


def _open_store(connect_s: float, silence_s: float) -> Any:
    """The store as a file system of fsspec that caches nothing."""
    if not installed():
        raise ExtraError("object stores need fsspec and s3fs: pip install 'riskstream[objects]'")
    import fsspec

    return fsspec.filesystem(
        OBJECT_PROTOCOL,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": connect_s,
            "read_timeout": silence_s,
            "retries": {"total_max_attempts": 1},
        },
    )
