"""The only part of a multipart/related body that is in memory. Pure; RFC 2046, section 5.1.

aiohttp's reader works on the stream instead: it reads a preamble without end, and warns of its own deprecated
calls. A body that has come whole, within its size, needs no more than a few searches.
"""

from email.message import Message
from email.parser import BytesHeaderParser

from worker.errors import FetchFailedError, FetchRefusedError

MAX_ENVELOPE_BYTES = 1 << 16
"""Before, between and after what the part holds."""

_MAX_HEAD_BYTES = 8 << 10

_MAX_BOUNDARY = 70


def only_part(content_type: str, body: bytes | bytearray) -> tuple[str, bytes]:
    """The media type of the part, in lower case, and its content.

    Args:
        content_type: the header of the whole, which names the boundary.

    Raises:
        FetchFailedError: `broken-response`: no part, or one that is cut off.
        FetchRefusedError: `several-images`, `encoded-response`.
    """
    delimiter = b"--" + _boundary(content_type)
    first = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter, 0, MAX_ENVELOPE_BYTES) + 2
    if first == 1:
        raise _broken()
    # From the line break that ends the boundary's line, for a part without headers.
    line_end = body.find(b"\r\n", first + len(delimiter), first + len(delimiter) + _MAX_HEAD_BYTES)
    head_end = body.find(b"\r\n\r\n", line_end, line_end + _MAX_HEAD_BYTES) if line_end >= 0 else -1
    if head_end < 0 or body[first + len(delimiter) : line_end].strip():
        raise _broken()
    # An empty part ends with the line break that ends its headers.
    end = body.find(b"\r\n" + delimiter, head_end + 2)
    if end < 0:
        raise _broken()
    content = bytes(memoryview(body)[head_end + 4 : end])
    media_type = _judged(bytes(body[line_end + 2 : head_end + 2]), len(content))
    if not body.startswith(b"--", end + 2 + len(delimiter)):
        raise FetchRefusedError("more than one picture came", reason="several-images")
    return media_type, content


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary("")
    if not boundary.isascii() or not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise _broken()
    return boundary.encode()


def _judged(head: bytes, length: int) -> str:
    """The media type that a part's headers name, if the content is as they say."""
    headers = BytesHeaderParser().parsebytes(head)
    transfer_encoding = str(headers.get("Content-Transfer-Encoding", "binary"))
    if "Content-Encoding" in headers or transfer_encoding.strip().lower() != "binary":
        raise FetchRefusedError("an encoded part, which may be a bomb", reason="encoded-response")
    if headers.defects or str(headers.get("Content-Length", length)).strip() != str(length):
        raise _broken()
    return headers.get_content_type()


def _broken() -> FetchFailedError:
    return FetchFailedError("the multipart response is broken", reason="broken-response")
