"""Pictures decoded in other processes, which a hostile file can end and nothing more.

    content -> Decoders.decode -> Decoded, or an ImageError with its reason

A few decoder processes (`decoder_child.py`) wait with everything loaded; each takes one picture at a time and
forks a child for it. What comes back is a fixed header, a note of checked words and the image's numbers; no
text of a child goes into a message.
"""

import asyncio
import math
import os
import struct
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from engines.decoded import FLAGS, Decoded, Words, normal
from engines.errors import IMAGE_REASONS, ExtraError, ImageError
from engines.limits import MAX_BYTES, MAX_PIXELS
from schemas.model_config import ImageInput
from worker.config import Settings
from worker.decoder_child import MAX_NOTE, NOTE, ORDER, REPLY, Note, Order, Outcome
from worker.errors import DecoderError
from worker.imaging_steps import waiting

START_S = 60.0
"""For a decoder process to have everything loaded: half a second, or far more on a busy machine."""

GRACE_S = 5.0
"""Beyond the time that a picture has: a decoder that has not reported its end by then is ended itself."""

WAITING = 64
"""Pictures that may wait for a decoder; their bytes are in memory."""

_PIECE = 1 << 20
_BUFFER = 16 << 20
"""Bytes that are read ahead: any answer, so that no decoder is stuck with one that nobody wants any more."""
_OUTCOMES = {Outcome.TIMEOUT: "decode-timeout", Outcome.CRASHED: "decode-crashed"}


def longest_s(timeout_s: float) -> float:
    """The longest that a picture takes once it has a decoder, whatever the file does: two tries.

    For each, one that is lost is ended, the next is started and asked, and ended in its turn.
    """
    return 2 * (GRACE_S + START_S + timeout_s + GRACE_S + GRACE_S)


class Decoders:
    """A pool of decoder processes, for one event loop. Starting it again after `close` is not meant.

    Args:
        count: decoder processes, and pictures decoded at once.
        timeout_s: wall time of a picture, from when a decoder has it.
        memory_mb: MiB that decoding a picture may take beyond the idle decoder and the file.
        module: what a decoder process runs.
    """

    def __init__(
        self, count: int, timeout_s: float, memory_mb: int, module: str = "worker.decoder_child"
    ) -> None:
        command = [sys.executable, "-P", "-m", module, str(timeout_s), str(memory_mb << 20)]
        self._processes = [_Process(command, timeout_s + GRACE_S) for _ in range(count)]
        self._idle: asyncio.Queue[_Process] = asyncio.Queue()
        for process in self._processes:
            self._idle.put_nowait(process)
        self._waiting = 0
        self._closed = False

    @classmethod
    def of(cls, settings: Settings) -> "Decoders":
        """As the settings say."""
        return cls(
            settings.imaging_decoders, settings.imaging_decode_timeout_s, settings.imaging_decode_memory_mb
        )

    @property
    def pids(self) -> list[int]:
        """Of the decoder processes that run."""
        return [process.pid for process in self._processes if process.pid]

    @property
    def peak_bytes(self) -> int:
        """The most resident memory that decoding a picture has taken, with the decoder's own."""
        return max(process.peak_bytes for process in self._processes)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start every process and wait until each has everything loaded.

        Raises:
            DecoderError: one does not start.
        """
        starts = (process.start() for process in self._processes)
        for error in await asyncio.gather(*starts, return_exceptions=True):
            if error is not None:
                await self.close()
                raise error

    async def close(self) -> None:
        """End every process; whoever waits for a picture gets a DecoderError."""
        self._closed = True
        await asyncio.gather(*(process.stop() for process in self._processes))

    async def decode(
        self,
        content: bytes,
        wanted: ImageInput,
        *,
        frame: int | None = None,
        hints: Words | None = None,
        allow_burned_in: bool = False,
        patient: str = "",
    ) -> Decoded:
        """A picture as a model's input; see `images.read`.

        Raises:
            ImageError: the picture is refused, or decoding it took too long or too much, or ended its child.
            ExtraError: it is DICOM and pydicom is not installed.
            DecoderError: no decoder can be started, too many pictures wait, or the pool is closed.
        """
        if len(content) > MAX_BYTES:
            raise ImageError("too-large")
        order = msgspec.msgpack.encode(Order(wanted, frame, hints or Words(), allow_burned_in, patient))
        most = NOTE.size + MAX_NOTE + 4 * math.prod(wanted.dims)
        process = await self._free()
        try:
            outcome, answer = await self._asked(process, order, content, most)
        finally:
            if self._closed:
                await process.stop()
            self._idle.put_nowait(process)
        if outcome in _OUTCOMES:
            raise ImageError(_OUTCOMES[outcome])
        return _checked(answer, wanted)

    async def _asked(
        self, process: "_Process", order: bytes, content: bytes, most: int
    ) -> tuple[Outcome, bytes]:
        """The process's reply. The first that is lost may have been killed for a reason of its own."""
        for _ in range(2):
            if self._closed:
                break
            reply = await process.ask(order, content, most)
            if reply is not None:
                return reply
        if self._closed:
            raise DecoderError("the decoders are closed")
        return Outcome.CRASHED, b""

    async def _free(self) -> "_Process":
        if self._idle.empty() and self._waiting >= WAITING:
            raise DecoderError(f"{self._waiting} pictures wait for {len(self._processes)} decoders")
        self._waiting += 1
        try:
            with waiting():
                return await self._idle.get()
        finally:
            self._waiting -= 1


class _Process:
    """One decoder process, started when it is needed; for one caller at a time."""

    def __init__(self, command: list[str], patience_s: float) -> None:
        self._command = command
        self._patience_s = patience_s
        self._process: asyncio.subprocess.Process | None = None
        self.peak_bytes = 0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def start(self) -> None:
        """Have a process that is ready.

        Raises:
            DecoderError: it cannot be started, or ends before it is ready.
        """
        try:
            async with asyncio.timeout(START_S):
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=_environment(),
                    cwd="/",
                    start_new_session=True,
                    limit=_BUFFER,
                )
                self._process = process
                await self._reply(process)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, struct.error) as error:
            await self.stop()
            raise DecoderError(
                f"a decoder process does not start ({type(error).__name__}): "
                f"see what `python {' '.join(self._command[1:])}` says"
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def ask(self, order: bytes, content: bytes, most: int) -> tuple[Outcome, bytes] | None:
        """How decoding ended, and the answer; None, after which it has ended, if the process was lost."""
        if not self.pid:
            await self.stop()
            await self.start()
        process = self._process
        if process is None:
            return None  # the pool was closed while it started
        try:
            async with asyncio.timeout(self._patience_s):
                await _send(process, ORDER.pack(len(order), len(content), most) + order, content)
                return await self._reply(process, most)
        except TimeoutError:
            await self.stop()
            return Outcome.TIMEOUT, b""
        except (OSError, asyncio.IncompleteReadError, ValueError):
            await self.stop()
            return None
        except BaseException:  # cancelled in the middle: what comes next would answer the wrong picture
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the process by ending its input, or by force; it is waited for in any case."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _reply(self, process: asyncio.subprocess.Process, most: int = 0) -> tuple[Outcome, bytes]:
        assert process.stdout is not None
        outcome, peak, size = REPLY.unpack(await process.stdout.readexactly(REPLY.size))
        if size > most:
            raise ValueError("an answer longer than it may be")
        self.peak_bytes = max(self.peak_bytes, peak)
        return Outcome(outcome), await process.stdout.readexactly(size)


async def _send(process: asyncio.subprocess.Process, head: bytes, content: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(head)
    for start in range(0, len(content), _PIECE):
        process.stdin.write(content[start : start + _PIECE])
        await process.stdin.drain()
    await process.stdin.drain()


def _environment() -> dict[str, str]:
    """Where to find the code, and nothing of the worker's own: that holds its passwords."""
    return {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }


def _checked(answer: bytes, wanted: ImageInput) -> Decoded:
    """An answer, believed only as far as it has the form that it must have.

    Raises:
        ImageError: it names a reason, or has not that form.
        ExtraError: an extra is missing.
    """
    try:
        size = NOTE.unpack_from(answer)[0]
        note = msgspec.msgpack.decode(answer[NOTE.size : NOTE.size + size], type=Note)
        body = np.frombuffer(answer[NOTE.size + size :], dtype=">f4")
    except (struct.error, msgspec.MsgspecError, ValueError) as error:
        raise ImageError("decode-crashed") from error
    if note.reason == ExtraError.reason:
        raise ExtraError("DICOM files need pydicom: pip install 'riskstream[dicom]'")
    if note.reason in IMAGE_REASONS:
        raise ImageError(note.reason)
    if not _sound(note, body.size, wanted) or not (body.min() >= 0 and body.max() <= 1):
        raise ImageError("decode-crashed")
    image = body.astype(np.float32).reshape(wanted.dims)
    words = (note.modality, note.body_part, note.view)
    return Decoded(image, note.height, note.width, *words, note.identity, note.flags)


def _sound(note: Note, values: int, wanted: ImageInput) -> bool:
    words = (note.modality, note.body_part, note.view)
    return (
        not note.reason
        and values == math.prod(wanted.dims)
        and 0 < note.height * note.width <= MAX_PIXELS
        and bool(note.identity)
        and all(word == normal(word) for word in words)
        and FLAGS.keys() >= set(note.flags)
    )
