"""Pictures that are made to harm whoever decodes them, each small."""

import io
import re
import struct
import zlib

import numpy as np
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.engines.pictures import dicom, encoded

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _zeros(count: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """What inflates to so many zeros."""
    packer, piece = zlib.compressobj(9, zlib.DEFLATED, wbits), bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(count >> 20)), packer.flush()])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def black_png(side: int, inflated: int) -> bytes:
    """A PNG of side x side pixels in colour, whose data inflate to so many bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"".join(
        (_SIGNATURE, _chunk(b"IHDR", head), _chunk(b"IDAT", _zeros(inflated)), _chunk(b"IEND", b""))
    )


def talkative_png(inflated: int) -> bytes:
    """A small PNG with a compressed comment of so many bytes."""
    small = encoded(np.zeros((8, 8), np.uint8))
    comment = _chunk(b"zTXt", b"Comment\0\0" + _zeros(inflated))
    return small[:33] + comment + small[33:]  # after the signature and IHDR


def endless_jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes so many times: each visits every block."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = [found.start() for found in re.finditer(b"\xff\xda", whole)][-1]
    scan = whole[whole.rfind(b"\xff\xc4", 0, last) : -2]
    return whole[:-2] + scan * scans + b"\xff\xd9"


def deflated_dicom(inflated: int) -> bytes:
    """A DICOM file in deflated transfer syntax that inflates to so many bytes."""
    whole = dicom(np.zeros((8, 8), np.uint8))
    meta_bytes = 144 + struct.unpack("<I", whole[140:144])[0]
    syntax, plain = DeflatedExplicitVRLittleEndian.encode(), b"1.2.840.10008.1.2.1\0"
    longer = syntax + b"\0" * (len(syntax) % 2)
    meta = whole[:meta_bytes].replace(
        struct.pack("<H", len(plain)) + plain, struct.pack("<H", len(longer)) + longer
    )
    length = struct.pack("<I", meta_bytes - 144 + len(longer) - len(plain))
    return meta[:140] + length + meta[144:] + _zeros(inflated, -zlib.MAX_WBITS)
