"""Findings of pictures on the ward page: a patient's last few, and the pictures that go with them.

Pictures are bounded over all patients together, because a few thousand patients' would not fit in memory; a
finding whose picture had to go is shown without. What is no PNG of a sensible size is never kept, so it is
never served.
"""

import itertools
import struct
from bisect import insort
from collections import OrderedDict

import msgspec

from schemas.messages import MAX_ACTIVATION_BYTES, Finding
from worker.board_rows import Imaging, Pictured
from worker.decode import milliseconds

KEPT_FINDINGS = 4
"""Findings of a patient, those of the newest pictures."""

KEPT_PICTURE_BYTES = 128 << 20
"""Of all pictures together; those that came first go first."""

MAX_SIDE = 4096
"""Pixels; 256 KiB may claim to be a picture that a browser has no memory for."""

_HEAD = struct.Struct(">8sI4sII")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB\x60\x82"


class Pictures:
    """PNGs by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0

    def add(self, png: bytes | None) -> int:
        """Keep a picture, if it is one; its number, which is no other's."""
        number = next(self._numbers)
        if png is not None and is_png(png):
            self._kept[number] = png
            self._bytes += len(png)
            while self._bytes > KEPT_PICTURE_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return number

    def get(self, number: int) -> bytes | None:
        """A picture; None where there was none, or it had to go."""
        return self._kept.get(number)

    def drop(self, number: int) -> None:
        """Let a picture go."""
        self._bytes -= len(self._kept.pop(number, b""))


class Findings:
    """One patient's, the newest picture's first."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Finding]] = []  # with its number; the finding without its picture

    def add(self, finding: Finding, pictures: Pictures) -> None:
        """Take a finding, unless one with its id is there or all that are there are newer."""
        if any(finding.id == other.id for _, other in self._kept):
            return
        if len(self._kept) == KEPT_FINDINGS and _order((0, finding)) > _order(self._kept[-1]):
            return
        number = pictures.add(finding.activation_png)
        insort(self._kept, (number, msgspec.structs.replace(finding, activation_png=None)), key=_order)
        for gone, _ in self._kept[KEPT_FINDINGS:]:
            pictures.drop(gone)
        del self._kept[KEPT_FINDINGS:]

    def clear(self, pictures: Pictures) -> None:
        """Let all go, with their pictures."""
        for number, _ in self._kept:
            pictures.drop(number)
        self._kept.clear()

    def has(self, number: int) -> bool:
        """Whether a number is one of this patient's findings."""
        return any(number == other for other, _ in self._kept)

    def newest(self) -> Imaging | None:
        """The newest picture's finding in short; None where there is none."""
        if not self._kept:
            return None
        _, one = self._kept[0]
        at, doubts = milliseconds(one.time), len(one.quality)
        return Imaging(one.outcome, one.risk, at, doubts, one.modality, one.body_part)

    def told(self, pictures: Pictures) -> list[Pictured]:
        """All of them, for the details."""
        return [Pictured(number, pictures.get(number) is not None, one) for number, one in self._kept]


def is_png(data: bytes) -> bool:
    """Whether data begin and end as a PNG, within 256 KiB and 4096 by 4096 pixels."""
    if not _HEAD.size + len(_END) <= len(data) <= MAX_ACTIVATION_BYTES or not data.endswith(_END):
        return False
    signature, length, kind, width, height = _HEAD.unpack_from(data)
    if (signature, length, kind) != (_SIGNATURE, 13, b"IHDR"):
        return False
    return bool(0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE)


def _order(kept: tuple[int, Finding]) -> tuple[int, int, str]:
    """Newest picture first; of one picture the newest model first."""
    finding = kept[1]
    return -milliseconds(finding.time), -finding.model.version, finding.id
