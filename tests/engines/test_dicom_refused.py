"""What is refused, by which reason, and before anything of it is decoded; what is said of what is taken."""

import io
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pydicom.pixels.utils
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from engines import codestream, images
from engines.errors import IMAGE_REASONS, ImageError
from schemas.model_config import ImageInput
from tests.engines.dicom_files import (
    HELD,
    changed,
    colours,
    grey,
    held,
    lossless_jpeg,
    palette,
    seeds,
    with_syntax,
    wrapped,
)
from tests.engines.pictures import dicom, encoded

SMALL = ImageInput(height=8, width=8)
DEEP = grey()
RAMP = grey(np.uint8, 255)
TYPE_1 = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
)


def reason_of(content: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        images.read(content, SMALL, **options)
    assert caught.value.reason in IMAGE_REASONS
    return caught.value.reason


def streamed(content: bytes, change: Any) -> bytes:
    """The file with its one compressed frame changed."""
    dataset = dcmread(io.BytesIO(content))
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    return changed(content, PixelData=encapsulate([change(stream)]))


def under(content: bytes, syntax: UID) -> bytes:
    """The same bytes under another transfer syntax."""
    dataset = dcmread(io.BytesIO(content))
    dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


JPEG = wrapped(encoded(RAMP, "JPEG"), RAMP, JPEGBaseline8Bit)
J2K = with_syntax(dicom(RAMP), JPEG2000Lossless)
RLE = with_syntax(dicom(DEEP), RLELossless)
LARGE = {"Rows": 60_000, "Columns": 60_000}
FULL = {"Rows": 8000, "Columns": 8000}


def jpeg_size(height: int, width: int) -> Any:
    """Another size in the frame header of a baseline JPEG stream."""

    def change(stream: bytes) -> bytes:
        at = stream.index(b"\xff\xc0") + 5
        return stream[:at] + struct.pack(">HH", height, width) + stream[at + 4 :]

    return change


def siz(at: int, *values: int) -> Any:
    """Other numbers in the size of a JPEG 2000 stream."""

    def change(stream: bytes) -> bytes:
        packed = struct.pack(f">{len(values)}I", *values)
        return stream[:at] + packed + stream[at + len(packed) :]

    return change


REFUSED = {
    "no bytes": (b"", "not-an-image"),
    "a GIF": (b"GIF89a" + bytes(400), "not-an-image"),
    "no part 10": (held("no_meta"), "not-an-image"),
    "a report": (held("test-SR"), "no-pixels"),
    "a wave": (held("waveform_ecg"), "no-pixels"),
    "numbers that are not whole": (
        changed(dicom(RAMP), PixelData=None, FloatPixelData=bytes(4 * RAMP.size)),
        "no-pixels",
    ),
    "deflated": (held("image_dfl"), "unsupported-syntax"),
    "deflated, behind a long preface": (
        held("image_dfl").replace(
            b"\x02\x00\x10\x00UI", b"\x02\x00\x02\x01OB\0\0\0\x10\0\0" + bytes(4096) + b"\x02\x00\x10\x00UI"
        ),
        "unsupported-syntax",
    ),
    "no syntax": (held("meta_missing_tsyntax"), "unsupported-syntax"),
    "a video": (under(JPEG, MPEG2MPML), "unsupported-syntax"),
    "high-throughput JPEG 2000": (under(J2K, HTJ2K), "unsupported-syntax"),
    "HSV": (changed(dicom(colours()), PhotometricInterpretation="HSV"), "unsupported-photometric"),
    "no photometric": (changed(dicom(RAMP), PhotometricInterpretation=None), "unsupported-photometric"),
    "YBR_ICT that is not compressed": (
        changed(dicom(colours()), PhotometricInterpretation="YBR_ICT"),
        "unsupported-photometric",
    ),
    "grey of three samples": (changed(dicom(RAMP), SamplesPerPixel=3), "unsupported-photometric"),
    "a palette in segments": (
        changed(
            dicom(RAMP, **palette()),
            RedPaletteColorLookupTableData=None,
            SegmentedRedPaletteColorLookupTableData=b"\0\1\0\0",
        ),
        "unsupported-photometric",
    ),
    "24 bits": (changed(dicom(DEEP), BitsAllocated=24, BitsStored=24, HighBit=23), "unsupported-pixels"),
    "more bits than there are": (changed(dicom(DEEP), BitsStored=17), "unsupported-pixels"),
    "no bits": (changed(dicom(DEEP), BitsStored=0), "unsupported-pixels"),
    "a high bit too high": (changed(dicom(DEEP), BitsStored=12, HighBit=16), "unsupported-pixels"),
    "a high bit too low": (changed(dicom(DEEP), BitsStored=12, HighBit=10), "unsupported-pixels"),
    "a high bit of a stream": (
        wrapped(lossless_jpeg(DEEP, 12), DEEP, JPEGLosslessSV1, BitsStored=12, HighBit=15),
        "unsupported-pixels",
    ),
    "signed colours": (changed(dicom(colours()), PixelRepresentation=1), "unsupported-pixels"),
    "colours of 32 bits": (held("SC_rgb_rle_32bit"), "unsupported-pixels"),
    "YBR of 16 bits": (
        dicom(colours().astype(np.uint16), PhotometricInterpretation="YBR_FULL"),
        "unsupported-pixels",
    ),
    "large": (changed(dicom(RAMP), **LARGE), "too-large"),
    "as large in a stream": (streamed(changed(JPEG, **LARGE), jpeg_size(60_000, 60_000)), "too-large"),
    "many frames": (changed(dicom(RAMP), NumberOfFrames=1_000_000), "too-large"),
    "no rows": (changed(dicom(RAMP), Rows=0), "damaged-header"),
    "less than no frames": (changed(dicom(RAMP), NumberOfFrames=-1), "too-large"),
    "several frames": (held("rtdose"), "several-frames"),
    "a stream larger than its header": (streamed(JPEG, jpeg_size(60_000, 60_000)), "size-mismatch"),
    "a stream smaller than its header": (changed(JPEG, **FULL), "size-mismatch"),
    "a stream that tells its height later": (streamed(JPEG, jpeg_size(0, 51)), "size-mismatch"),
    "a stream too short for its size": (
        streamed(changed(JPEG, **FULL), jpeg_size(8000, 8000)),
        "size-mismatch",
    ),
    "a lossless stream too short for its size": (
        wrapped(lossless_jpeg(DEEP, 12)[:150] + b"\xff\xd9", DEEP, JPEGLosslessSV1),
        "size-mismatch",
    ),
    "a JPEG too short for its size": (jpeg_size(8000, 8000)(encoded(RAMP, "JPEG")), "size-mismatch"),
    "a JPEG 2000 larger than its header": (streamed(J2K, siz(8, 1 << 31, 1 << 31)), "too-large"),
    "one in one tile": (
        streamed(J2K, siz(8, 60_000, 60_000, 0, 0, 60_000, 60_000)),
        "size-mismatch",
    ),
    "a JPEG 2000 of many tiles": (
        streamed(changed(J2K, **FULL), siz(8, 8000, 8000, 0, 0, 1, 1)),
        "too-large",
    ),
    "a JPEG 2000 of tiles without a size": (streamed(J2K, siz(24, 0, 0)), "damaged-pixels"),
    "no JPEG 2000": (under(JPEG, JPEG2000Lossless), "damaged-pixels"),
    "no JPEG": (under(J2K, JPEGBaseline8Bit), "damaged-pixels"),
    "RLE of too few segments": (streamed(RLE, lambda rle: b"\x01" + rle[1:]), "size-mismatch"),
    "RLE of too many segments": (streamed(RLE, lambda rle: b"\xff" * 4 + rle[4:]), "size-mismatch"),
    "RLE outside of itself": (
        streamed(RLE, lambda rle: rle[:8] + b"\xff\xff\xff\x7f" + rle[12:]),
        "damaged-pixels",
    ),
    "RLE that is cut off": (streamed(RLE, lambda rle: rle[: len(rle) // 2]), "damaged-pixels"),
    "JPEG that is cut off": (streamed(JPEG, lambda jpeg: jpeg[:-200]), "damaged-pixels"),
    "JPEG 2000 that is cut off": (streamed(J2K, lambda j2k: j2k[:-200]), "damaged-pixels"),
    "an empty stream": (streamed(JPEG, lambda _: b"\0\0"), "damaged-pixels"),
    "too few bytes": (held("MR_truncated"), "damaged-pixels"),
    "a frame too many": (changed(dicom(RAMP), PixelData=RAMP.tobytes() * 2), "size-mismatch"),
    "a file that is cut off": (JPEG[:-300], "damaged-pixels"),
    "a window without a width": (changed(dicom(RAMP), WindowCenter=1, WindowWidth=0), "invalid-window"),
    "a window of no known function": (
        changed(dicom(RAMP), WindowCenter=1, WindowWidth=9, VOILUTFunction="SPIRAL"),
        "invalid-window",
    ),
    "an infinite rescale": (
        changed(dicom(RAMP), RescaleSlope="1e308", RescaleIntercept="0"),
        "damaged-header",
    ),
    "burned in": (changed(dicom(RAMP), BurnedInAnnotation="YES"), "burned-in"),
    "a broken PNG": (encoded(RAMP)[:60], "damaged-file"),
    "a broken JPEG": (encoded(RAMP, "JPEG")[:300], "damaged-file"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(content: bytes, reason: str) -> None:
    assert reason_of(content) == reason


@pytest.mark.parametrize("attribute", TYPE_1)
@pytest.mark.parametrize("content", [dicom(DEEP), JPEG], ids=["native", "jpeg"])
def test_pixels_need_their_attributes(content: bytes, attribute: str) -> None:
    assert reason_of(changed(content, **{attribute: None})) == "damaged-header"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "large",
            "as large in a stream",
            "many frames",
            "several frames",
            "a stream larger than its header",
        ),
        *("a JPEG 2000 larger than its header", "one in one tile", "a JPEG 2000 of many tiles"),
        *("a stream too short for its size", "a JPEG too short for its size"),
        *(
            "RLE of too many segments",
            "RLE outside of itself",
            "too few bytes",
            "burned in",
            "a frame too many",
        ),
    ],
)
def test_what_is_refused_is_not_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("it came to decoding")

    monkeypatch.setattr(pydicom.pixels.utils, "pixel_array", decoded)
    content, reason = REFUSED[name]
    assert reason_of(content) == reason


@pytest.mark.parametrize("frame", [0, -1, 4])
def test_a_frame_that_is_not_there(frame: int) -> None:
    assert reason_of(seeds()["frames"], frame=frame) == "wrong-frame"
    assert reason_of(encoded(RAMP), frame=2) == "wrong-frame"


def test_a_damaged_rle_stream_that_makes_its_decoder_panic() -> None:
    def overrun(rle: bytes) -> bytes:
        return rle[:64] + b"\x7f" * (len(rle) - 64)

    assert reason_of(streamed(RLE, overrun)) == "damaged-pixels"


def test_a_stream_within_a_jp2_file_is_found() -> None:
    stream = get_frame(dcmread(io.BytesIO(J2K)).PixelData, 0, number_of_frames=1)
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x10ftyp" + bytes(8)
    for head in (b"\0\0\0\0jp2c", b"\0\0\0\1jp2c" + bytes(8)):
        assert (
            codestream.jpeg_2000(boxes + head + stream) == codestream.jpeg_2000(stream) == (39, 51, 1, 8, 0)
        )
    with pytest.raises(ImageError, match="without a size"):
        codestream.jpeg_2000(boxes + b"\0\0\0\0none")


def test_every_reason_of_a_file_is_tested() -> None:
    told = {reason for _, reason in REFUSED.values()}
    words = {"wrong-frame", "wrong-modality", "wrong-body-part", "wrong-view", "other-patient"}
    ends = {"decode-timeout", "decode-memory", "decode-crashed"}
    assert told | words | ends == IMAGE_REASONS.keys()


@pytest.mark.parametrize("path", sorted(HELD.glob("*.dcm")), ids=lambda path: path.stem)
def test_every_file_of_pydicom_has_one_fate(path: Any) -> None:
    for frame in (None, 1):
        with suppress(ImageError):
            made = images.read(path.read_bytes(), SMALL, frame=frame)
            assert np.isfinite(made.image).all()
            assert made.image.max() <= 1


@pytest.mark.parametrize(
    ("named", "patient", "refused"),
    [
        ("MRN-17", "MRN-17", False),
        (" MRN-17 ", "MRN-17", False),  # spaces around count for nothing in DICOM
        ("", "MRN-17", False),
        (None, "MRN-17", False),
        ("MRN-18", "MRN-17", True),
        ("mrn-17", "MRN-17", True),
        ("MRN-17\\MRN-18", "MRN-17", True),
        ("MRN-18", "", False),
    ],
)
def test_a_file_may_be_held_to_the_patient_of_its_event(
    named: str | None, patient: str, refused: bool
) -> None:
    more: dict[str, Any] = {} if named is None else {"PatientID": named}
    content = dicom(RAMP, **more)
    if refused:
        assert reason_of(content, patient=patient) == "other-patient"
    else:
        made, anybodys = images.read(content, SMALL, patient=patient), images.read(content, SMALL)
        assert made.image.tobytes() == anybodys.image.tobytes()
        assert made[1:] == anybodys[1:]


@pytest.mark.parametrize("behind", [False, True], ids=["beside", "behind the pixels"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("pair", [("MRN-18", "MRN-17"), ("MRN-17", "MRN-18"), ("MRN-17", "MRN-17")])
def test_a_file_that_names_its_patient_twice_is_damaged(
    pair: tuple[str, str], syntax: UID, behind: bool
) -> None:
    content = dicom(RAMP, syntax, PatientID=pair[0])
    at = content.index(b"\x10\x00\x20\x00")
    second = content[at : at + 14].replace(pair[0].encode(), pair[1].encode())
    twice = content + second if behind else content[: at + 14] + second + content[at + 14 :]
    assert reason_of(twice, patient="MRN-17") == "damaged-header"
    once = images.read(content, SMALL, patient=pair[0])
    assert images.read(twice, SMALL).image.tobytes() == once.image.tobytes()


def test_whose_file_it_is_stands_in_no_message() -> None:
    with pytest.raises(ImageError) as caught:
        images.read(dicom(RAMP, PatientID="MRN-18"), SMALL, patient="MRN-17")
    assert "MRN" not in str(caught.value)
    assert "MRN" not in str(caught.value.__cause__)
