"""Pictures in files under allowed roots. Linux alone: it needs O_PATH and /proc.

A file is pinned before it is judged: O_PATH follows links without opening what they lead to, so that a pipe
or a device is never touched; then the pinned file's own type and real path decide, and it is read through the
same pin. Whoever swaps a folder for a link meanwhile changes nothing.
"""

import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from worker.errors import FetchFailedError, FetchRefusedError, SourceAwayError
from worker.fetch_threads import NoThreadError, Threads


class FileSource:
    """Reads files in threads of its own."""

    def __init__(
        self, roots: Sequence[Path], *, max_bytes: int, threads: int, seconds: float, probe_s: float
    ) -> None:
        """
        Args:
            roots: existing folders; a relative path counts from the first.
            seconds: how long a read may take.
            probe_s: how long a root may take to answer whether it is there.
        """
        self._roots = [str(root.absolute()) for root in roots]
        self._real = [os.path.realpath(root) for root in self._roots]
        self._max_bytes = max_bytes
        self._threads = Threads("file", threads)
        self._probes = Threads("file", 1)
        self._seconds = seconds
        self._probe_s = probe_s

    async def read(self, path: str, size: int | None) -> bytes:
        """The whole file.

        Args:
            path: absolute, or from the first root.
            size: bytes that it will have once it is written, if known.

        Raises:
            FetchRefusedError: `outside-roots`, `invalid-reference`, `not-a-file`, `image-too-large`.
            FetchFailedError: `not-found`, `forbidden`, `truncated`, `unreadable`, `too-slow`.
            SourceAwayError: the file cannot be read, and neither can its root be looked at.
        """
        root, path = self._place(path)
        try:
            return await self._threads.call(partial(self._read, path, size), self._seconds)
        except NoThreadError:
            raise SourceAwayError("every thread that reads files hangs") from None
        except TimeoutError:
            failure = FetchFailedError("the file took too long to read", reason="too-slow")
        except PermissionError:
            failure = FetchFailedError("the file may not be read", reason="forbidden")
        except (FileNotFoundError, NotADirectoryError):
            failure = FetchFailedError("no such file", reason="not-found")
        except OSError:
            failure = FetchFailedError("the file cannot be read", reason="unreadable")
        if await self._answers(root):
            raise failure
        raise SourceAwayError("a root of imaging_roots does not answer")

    def _place(self, path: str) -> tuple[str, str]:
        """The root that a path is written under, and the path from it; nothing outside is even looked at."""
        if "\0" in path:
            raise FetchRefusedError("a path with a zero byte", reason="invalid-reference")
        whole = os.path.normpath(os.path.join(*self._roots[:1], path))
        for root, real in zip(self._roots, self._real, strict=True):
            if _is_under(whole, root) or _is_under(whole, real):
                return root, whole
        raise FetchRefusedError("the path lies under none of imaging_roots", reason="outside-roots")

    def _read(self, path: str, size: int | None) -> bytes:
        pin = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not any(_is_under(os.readlink(f"/proc/self/fd/{pin}"), real) for real in self._real):
                raise FetchRefusedError("a link leads out of imaging_roots", reason="outside-roots")
            state = os.fstat(pin)
            if not stat.S_ISREG(state.st_mode):
                raise FetchRefusedError("a folder, pipe, socket or device", reason="not-a-file")
            if state.st_size > self._max_bytes:
                raise FetchRefusedError("the file exceeds imaging_max_bytes", reason="image-too-large")
            if size is not None and state.st_size < size:
                raise FetchFailedError("the file is shorter than its event says", reason="truncated")
            # The pinned file itself, whatever stands at its path by now.
            file = os.open(f"/proc/self/fd/{pin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(pin)
        with os.fdopen(file, "rb") as opened:
            content = opened.read(state.st_size + 1)
        if len(content) != state.st_size:
            raise FetchFailedError("the file changed while it was read", reason="truncated")
        return content

    async def _answers(self, root: str) -> bool:
        """Whether a root is there and may be entered; else a picture that is missing is not at fault."""
        try:
            await self._probes.call(partial(os.stat, f"{root}/."), self._probe_s)
        except (NoThreadError, OSError):
            return False
        return True


def _is_under(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
