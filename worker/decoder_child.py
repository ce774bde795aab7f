"""A decoder process: waits for pictures, and decodes each in a child that is forked for it alone.

What comes may be made to break a decoder. The child has the file, a pipe to answer through, and limits of
memory, time, files and processes; the decoder itself never looks into the file. So a picture can end, hang or
garble its own child and nothing else, and the next picture starts from a clean copy. This is no sandbox:
code that runs in a child has the rights of the worker's user, without its environment and its memory.

All numbers are big-endian.

    worker -> decoder    u32 bytes of the order, u64 of the file, u64 of the longest answer; order; file
    child -> decoder     u32 bytes of the note, note, float32 of the image; then it ends with status 0
    decoder -> worker    u8 outcome, u64 the child's peak memory, u64 bytes of the answer; the child's answer

At its start the decoder sends an outcome `READY`. It ends when its input does, also while it is busy, and
ignores SIGINT and SIGTERM, which a supervisor may send to every process of the worker.
"""

import ctypes
import gc
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from time import perf_counter
from typing import Annotated, NamedTuple, NoReturn

import msgspec
from msgspec import Meta, Struct

from engines import images
from engines.decoded import Decoded, Words
from engines.errors import ExtraError, ImageError
from schemas.model_config import ImageInput

ORDER = struct.Struct(">IQQ")
REPLY = struct.Struct(">BQQ")
NOTE = struct.Struct(">I")

MAX_NOTE = 4096
"""Bytes of a note; its words are short."""

_PIECE = 1 << 20
_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 32


class Outcome(IntEnum):
    """How a child ended."""

    READY = 0
    ANSWERED = 1
    TIMEOUT = 2
    CRASHED = 3


class Order(Struct, frozen=True, array_like=True):
    """What is to be made of a file; see `images.read`."""

    wanted: ImageInput
    frame: int | None
    hints: Words
    allow_burned_in: bool
    patient: str


Word = Annotated[str, Meta(max_length=64)]


class Note(Struct, frozen=True, array_like=True):
    """What a child says beside the image: a reason alone, or all but a reason."""

    reason: Word = ""
    height: Annotated[int, Meta(ge=0)] = 0
    width: Annotated[int, Meta(ge=0)] = 0
    modality: Word = ""
    body_part: Word = ""
    view: Word = ""
    identity: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    flags: Annotated[tuple[Word, ...], Meta(max_length=16)] = ()


class Limits(NamedTuple):
    """Of one child: seconds of wall time, and bytes beyond what the idle decoder and the file take."""

    timeout_s: float
    memory: int


Read = Callable[[bytes, Order], Decoded]


def read(content: bytes, order: Order) -> Decoded:
    """`images.read`, as ordered."""
    return images.read(
        content,
        order.wanted,
        frame=order.frame,
        hints=order.hints,
        allow_burned_in=order.allow_burned_in,
        patient=order.patient,
    )


def serve(how: Read, limits: Limits) -> None:
    """Answer orders from standard input on standard output until the input ends."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    _die_with_parent()
    orders, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # what a library prints must not come between, and may quote the file
        os.dup2(nothing, number)
    os.close(nothing)
    images.warm()
    gc.freeze()  # a child then copies fewer of these pages
    _write(answers, REPLY.pack(Outcome.READY, 0, 0))
    while head := _exactly(orders, ORDER.size):
        order_size, size, most = ORDER.unpack(head)
        order = msgspec.msgpack.decode(_exactly(orders, order_size), type=Order)
        content = _exactly(orders, size)
        outcome, peak, answer = _in_child(how, content, order, most, limits, (orders, answers))
        del content
        _write(answers, REPLY.pack(outcome, peak, len(answer)))
        _write(answers, answer)


def _in_child(
    how: Read, content: bytes, order: Order, most: int, limits: Limits, ours: tuple[int, int]
) -> tuple[Outcome, int, bytes]:
    """How a child ended, its peak memory in bytes, and its answer if it ended well."""
    start = perf_counter()
    reader, writer = os.pipe()
    decoder, child = os.getpid(), os.fork()
    if child == 0:
        for number in (reader, *ours):
            os.close(number)
        _decode_and_end(how, content, order, limits, writer, decoder)
    os.close(writer)
    status = 0
    try:
        outcome, answer = _collect(reader, most, start + limits.timeout_s, ours[0])
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # its number is not given away before it has been waited for
        _, status, usage = os.wait4(child, 0)
    if outcome is Outcome.ANSWERED and status:
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        outcome = Outcome.TIMEOUT if late else Outcome.CRASHED
    return outcome, usage.ru_maxrss << 10, answer if outcome is Outcome.ANSWERED else b""


def _collect(reader: int, most: int, deadline: float, orders: int) -> tuple[Outcome, bytes]:
    """What a child writes until it ends; `ANSWERED` says only that it ended in time."""
    pieces: list[bytes] = []
    room = most
    while True:
        ready, _, _ = select.select([reader, orders], [], [], max(0.0, deadline - perf_counter()))
        if orders in ready:  # nothing is ordered before an answer: the input has ended
            sys.exit(0)
        if not ready:
            return Outcome.TIMEOUT, b""
        piece = os.read(reader, _PIECE)
        if not piece:
            return Outcome.ANSWERED, b"".join(pieces)
        room -= len(piece)
        if room < 0:
            return Outcome.CRASHED, b""
        pieces.append(piece)


def _decode_and_end(
    how: Read, content: bytes, order: Order, limits: Limits, writer: int, decoder: int
) -> NoReturn:
    """Never returns: the pipe is closed by the end of the process, so that its end is one event."""
    status = 1
    try:
        _die_with_parent()
        if os.getppid() == decoder:
            _limit(limits)
            for piece in _answer(how, content, order):
                _write(writer, piece)
            status = 0
    finally:
        os._exit(status)


def _answer(how: Read, content: bytes, order: Order) -> tuple[bytes, bytes]:
    try:
        made = how(content, order)
        note = Note("", *made[1:])
        body = made.image.astype(">f4", copy=False).tobytes()
    except ImageError as error:
        note, body = Note(error.reason), b""
    except ExtraError as error:
        note, body = Note(error.reason), b""
    except MemoryError:
        note, body = Note("decode-memory"), b""
    told = msgspec.msgpack.encode(note)
    return NOTE.pack(len(told)) + told, body


def _limit(limits: Limits) -> None:
    seconds = int(limits.timeout_s) + 2  # of a processor; wall time runs out before it on an idle machine
    wanted = {
        resource.RLIMIT_AS: _address_space() + limits.memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    for name, value in wanted.items():
        resource.setrlimit(name, (value, value))


def _address_space() -> int:
    """Bytes of this process's address space."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    return pages * resource.getpagesize()


def _die_with_parent() -> None:
    """Be killed by the kernel when the parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _exactly(number: int, size: int) -> bytes:
    """So many bytes; none if the input ends at once or before."""
    content = bytearray()
    while len(content) < size:
        piece = os.read(number, min(_PIECE, size - len(content)))
        if not piece:
            return b""
        content += piece
    return bytes(content)


def _write(number: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(number, left) :]


if __name__ == "__main__":
    serve(read, Limits(float(sys.argv[1]), int(sys.argv[2])))
