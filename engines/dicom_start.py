"""Where a DICOM file begins: behind the preamble of part 10, or without it, as old archives hold files.

A file without a preamble is taken only where its first elements are what such a file begins with: the meta
information (0002,xxxx), which says how the rest is written, or the data set itself at (0008,xxxx), little
endian, with explicit or implicit value representations. pydicom is then given the file as part 10 has it, so
that it never guesses.
"""

import struct
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import NamedTuple

HEAD = 4096
"""Bytes of a file's beginning that tell."""

_PREAMBLE = bytes(128) + b"DICM"
_MAGIC = slice(128, 132)
_IMPLICIT, _EXPLICIT = b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0"
_META, _FIRST = 0x0002, 0x0008
_NEEDED = {_META: 2, _FIRST: 3}
"""Elements that must be sound: one alone may be any few bytes."""

_GROUP_LENGTH = 0x0000
"""Of each group, and always a number of four bytes. A table of whole numbers may look like many of them."""

_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
    | {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)


class _Element(NamedTuple):
    """group, number: the tag. length: bytes of the value; `_UNDEFINED` for a sequence that ends itself."""

    group: int
    number: int
    length: int


def is_dicom(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` is DICOM; `HEAD` bytes are enough."""
    return head[_MAGIC] == b"DICM" or _bare(head[:HEAD], size) is not None


def part10(content: bytes) -> bytes:
    """A DICOM file as part 10 has it: as it is, or with the preamble and what says how it is written.

    Args:
        content: for which `is_dicom` holds, whole or up to the pixels; anything else is given back.
    """
    if content[_MAGIC] == b"DICM":
        return content
    syntax = _bare(content[:HEAD], len(content))
    if syntax is None:
        return content
    if not syntax:
        return _PREAMBLE + content
    named = struct.pack("<HH2sH", _META, 0x0010, b"UI", len(syntax)) + syntax
    return _PREAMBLE + struct.pack("<HH2sHI", _META, 0x0000, b"UL", 4, len(named)) + named + content


def _bare(head: bytes, size: int) -> bytes | None:
    """The transfer syntax of a file without a preamble: empty if it says so itself; None if it is none."""
    group = int.from_bytes(head[:2], "little")
    if group == _META:
        return b"" if _sound(head, size, group, explicit=True) else None
    if group == _FIRST:
        if _sound(head, size, group, explicit=True):
            return _EXPLICIT
        if _sound(head, size, group, explicit=False):
            return _IMPLICIT
    return None


def _sound(head: bytes, size: int, group: int, *, explicit: bool) -> bool:
    """Whether a file begins with an element of a group and others in rising order, which end within it.

    One of them at least has a value: what else rises may be a table of numbers.
    """
    found = list(islice(_elements(head, size, explicit=explicit), _NEEDED[group]))
    rising = all(a[:2] < b[:2] for a, b in pairwise(found))
    valued = any(element.length for element in found)
    return len(found) == _NEEDED[group] and rising and valued and found[0].group == group


def _elements(head: bytes, size: int, *, explicit: bool) -> Iterator[_Element]:
    """Elements from the beginning, until one is none, ends beyond the file or begins beyond the head."""
    at = 0
    while at + 12 <= len(head):
        group, number = struct.unpack_from("<HH", head, at)
        kind = head[at + 4 : at + 6]
        if not explicit:
            begin, length = at + 8, struct.unpack_from("<I", head, at + 4)[0]
        elif kind in _SHORT:
            begin, length = at + 8, struct.unpack_from("<H", head, at + 6)[0]
        elif kind in _LONG and head[at + 6 : at + 8] == b"\0\0":
            begin, length = at + 12, struct.unpack_from("<I", head, at + 8)[0]
        else:
            return
        if length != _UNDEFINED and (length % 2 or begin + length > size):
            return
        if number == _GROUP_LENGTH and length != 4:
            return
        yield _Element(group, number, length)
        if length == _UNDEFINED:
            return
        at = begin + length
