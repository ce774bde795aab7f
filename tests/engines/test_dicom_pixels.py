"""Pixels as DICOM means them: every transfer syntax and photometric, against arrays made here."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from engines import images
from tests.engines.dicom_files import (
    HELD,
    grey,
    held,
    lossless_jpeg,
    with_syntax,
    wrapped,
)
from tests.engines.pictures import dicom, encoded

F32 = NDArray[np.float32]
DEEP = grey()
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
SHADES = (DEEP / 4095)[:, :, None]
"""What a window over all 12 bits shows of `DEEP`: 0 is black and 4095 white."""


def shown(content: bytes, frame: int | None = None) -> F32:
    return images.decode(content, frame=frame)


def spread(values: NDArray[Any]) -> NDArray[np.float64]:
    """From the least to the greatest value."""
    return np.asarray((values - values.min()) / float(values.max() - values.min()))[:, :, None]


@pytest.mark.parametrize(
    "content",
    [
        dicom(DEEP, ImplicitVRLittleEndian, **TWELVE),
        dicom(DEEP, ExplicitVRLittleEndian, **TWELVE),
        dicom(DEEP.astype(">u2"), ExplicitVRBigEndian, **TWELVE),
        with_syntax(dicom(DEEP, **TWELVE), RLELossless),
        with_syntax(dicom(DEEP, **TWELVE), JPEG2000Lossless),
        wrapped(lossless_jpeg(DEEP, 12), DEEP, JPEGLosslessSV1, **TWELVE),
        wrapped(lossless_jpeg(DEEP, 12, 4), DEEP, JPEGLossless, **TWELVE),
        wrapped(lossless_jpeg(DEEP, 16), DEEP, JPEGLosslessSV1, **TWELVE),
    ],
    ids=["implicit", "explicit", "big-endian", "rle", "jpeg-2000", "lossless-1", "lossless-4", "lossless-16"],
)
def test_grey_is_the_same_in_every_lossless_syntax(content: bytes) -> None:
    np.testing.assert_allclose(shown(content), SHADES, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "expb", "implicit", "padded"]
)
def test_one_real_picture_in_every_syntax_that_it_comes_in(name: str) -> None:
    file = held("MR_small")
    at = file.rfind(b"\xe0\x7f\x10\x00OW")
    values = np.frombuffer(file[at + 12 : at + 12 + 8192], dtype="<i2").reshape(64, 64).astype(float)
    header = dcmread(io.BytesIO(file), stop_before_pixels=True)
    centre, width = float(header.WindowCenter), float(header.WindowWidth)
    expected = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(shown(file)[:, :, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(shown(held(f"MR_small_{name}")), shown(file))


def test_twelve_bits_with_loss_against_another_decoder_of_the_same_picture() -> None:
    stream = get_frame(dcmread(HELD / "JPEG2000.dcm").PixelData, 0, number_of_frames=1)
    with Image.open(io.BytesIO(stream)) as image:  # Pillow's own OpenJPEG
        other = np.asarray(image, dtype=np.float64)
    np.testing.assert_allclose(shown(held("JPEG2000")), spread(other), atol=1e-6)
    assert np.corrcoef(shown(held("JPGExtended")).ravel(), other.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("bits", [8, 16])
def test_near_lossless_jpeg_ls_is_near(bits: int) -> None:
    """Bars whose values are powers of two, to within the 3 that these files may lose."""
    powers = np.array([0, *(1 << np.arange(2, bits)), (1 << bits) - 1])
    values = shown(held(f"JPEGLSNearLossless_{bits:02}")) * ((1 << bits) - 1)
    away = np.abs(values - powers)
    assert away.min(axis=2).max() < 3.01
    assert len(np.unique(away.argmin(axis=2))) > 6


def test_grey_jpeg_is_near_what_was_put_in() -> None:
    smooth = grey(np.uint8, 255)
    content = wrapped(encoded(smooth, "JPEG", quality=100), smooth, JPEGBaseline8Bit)
    stored = np.asarray(Image.open(io.BytesIO(encoded(smooth, "JPEG", quality=100)))).astype(float)
    np.testing.assert_allclose(shown(content), spread(stored), atol=1.5 / 255)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize(("high", "noise"), [(11, 0xF000), (15, 0x000F), (13, 0xC003)])
def test_bits_around_the_stored_ones_are_nothing(syntax: Any, high: int, noise: int) -> None:
    stored = (DEEP << (high - 11)) | np.uint16(noise)
    plain = dicom(stored, **(TWELVE | {"HighBit": high}))
    content = plain if syntax == ExplicitVRLittleEndian else rle_of(stored, plain)
    np.testing.assert_allclose(shown(content), SHADES, atol=1e-6)


def rle_of(stored: NDArray[Any], plain: bytes) -> bytes:
    """As `plain`, but in two RLE segments of literal runs, high bytes first."""
    parts = []
    for plane in (stored >> 8, stored & 0xFF):
        data = plane.astype(np.uint8).tobytes()
        runs = [data[at : at + 128] for at in range(0, len(data), 128)]
        packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
        parts.append(packed + b"\0" * (len(packed) % 2))
    table = np.zeros(16, dtype="<u4")
    table[:3] = 2, 64, 64 + len(parts[0])
    dataset = dcmread(io.BytesIO(plain))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([table.tobytes() + b"".join(parts)])
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize("noise", [0x0000, 0xF000])
def test_a_sign_is_that_of_the_highest_stored_bit(noise: int) -> None:
    values = np.array([[-2048, -1, 0, 5, 2047]])
    stored = ((values & 0xFFF) | noise).astype(np.uint16).view(np.int16)
    content = dicom(stored, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(shown(content), spread(values), atol=1e-6)


def test_eight_bits_with_a_sign_and_thirty_two() -> None:
    values = np.array([[-128, -1, 0, 127]], dtype=np.int8)
    np.testing.assert_allclose(shown(dicom(values)), spread(values.astype(int)), atol=1e-6)
    for dtype in (np.uint32, np.int32):
        large = np.array([[7, 1_000_000, 2**31 - 1]], dtype=dtype)
        np.testing.assert_allclose(shown(dicom(large)), spread(large.astype(float)), atol=1e-6)


@pytest.mark.parametrize("frame", [1, 2, 3])
def test_single_bits_frame_by_frame(frame: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 7))
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    content = dicom(
        np.zeros((5, 7), np.uint8),
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        NumberOfFrames=3,
        PixelData=packed + b"\0" * (len(packed) % 2),
    )
    np.testing.assert_array_equal(shown(content, frame)[:, :, 0], bits[frame - 1])


def table(descriptor: list[int], entries: NDArray[Any], kind: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", kind, descriptor)
    item.add_new("LUTData", "OW", entries.tobytes())
    return Sequence([item])


def test_a_voi_table_of_more_entries_than_an_entry_has_levels() -> None:
    """12 bits in, 8 bits out: what most radiography rooms send."""
    entries = (np.arange(4096) // 16)[::-1].astype("<u2")
    content = dicom(DEEP, BitsStored=12, HighBit=11, VOILUTSequence=table([4096, 0, 8], entries))
    np.testing.assert_allclose(shown(content)[:, :, 0], entries[DEEP] / 255, atol=1e-6)


def test_a_modality_table_goes_before_the_window() -> None:
    entries = np.array([1000, 3000, 2000], dtype="<u2")
    stored = np.array([[-9, -1, 0, 1, 9]], dtype=np.int16)
    content = dicom(
        stored, ModalityLUTSequence=table([3, -1, 16], entries, "SS"), WindowCenter=2000.5, WindowWidth=2001
    )
    looked_up = np.array([[1000, 1000, 3000, 2000, 2000]])
    np.testing.assert_allclose(shown(content)[:, :, 0], (looked_up - 1000) / 2000, atol=1e-6)


@pytest.mark.parametrize(("first", "kind"), [(-1, "SS"), (65535, "US")])
def test_a_table_goes_before_the_window_and_after_the_rescale(first: int, kind: str) -> None:
    entries = np.array([0, 100, 50, 1023], dtype="<u2")
    content = dicom(
        np.array([[0, 1, 2, 3]], np.uint8),
        RescaleSlope=1,
        RescaleIntercept=-2,
        WindowCenter=0,
        WindowWidth=1,
        VOILUTSequence=table([4, first, 10], entries, kind),
    )
    np.testing.assert_allclose(shown(content)[0, :, 0], np.array([0, 0, 100, 50]) / 1023, atol=1e-6)


def test_a_table_in_big_endian_words() -> None:
    entries = np.array([0, 1023, 512, 256], dtype=">u2")
    stored = np.array([[0, 1, 2, 3]], dtype=">u2")
    content = dicom(stored, ExplicitVRBigEndian, VOILUTSequence=table([4, 0, 10], entries))
    np.testing.assert_allclose(shown(content)[0, :, 0], np.array([0, 1023, 512, 256]) / 1023, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "turned"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
    ],
)
def test_what_is_black(kind: str, shape: str | None, turned: bool) -> None:
    extra: dict[str, Any] = {} if shape is None else {"PresentationLUTShape": shape}
    content = dicom(DEEP, **TWELVE, PhotometricInterpretation=kind, PixelPaddingValue=0, **extra)
    expected = np.where(DEEP[:, :, None] == 0, 0, 1 - SHADES if turned else SHADES)
    np.testing.assert_allclose(shown(content), expected, atol=1e-6)


def test_padding_of_a_range_is_black_and_outside_of_the_window() -> None:
    stored = np.array([[-2000, -1999, -1500, 10, 20, 30]], dtype=np.int16)
    content = dicom(stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500)
    np.testing.assert_allclose(shown(content)[0, :, 0], [0, 0, 0, 0, 0.5, 1], atol=1e-6)


FRAMES = np.random.default_rng(1).integers(0, 256, (3, 40, 40)).astype(np.uint8)


def frames_in(syntax: Any) -> bytes:
    window: dict[str, Any] = {"WindowCenter": 128, "WindowWidth": 256}
    plain = dicom(FRAMES[0], NumberOfFrames=3, PixelData=FRAMES.tobytes(), **window)
    if syntax == JPEGLosslessSV1:
        streams = [lossless_jpeg(frame, 8) for frame in FRAMES]
        return dicom(FRAMES[0], syntax, NumberOfFrames=3, PixelData=encapsulate(streams), **window)
    return plain if syntax == ExplicitVRLittleEndian else with_syntax(plain, syntax)


@pytest.mark.parametrize("frame", [1, 2, 3])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1], ids=str
)
def test_the_chosen_frame_comes(syntax: Any, frame: int) -> None:
    np.testing.assert_allclose(shown(frames_in(syntax), frame)[:, :, 0], FRAMES[frame - 1] / 255, atol=1e-6)


def test_a_frame_has_the_window_and_rescale_of_its_group() -> None:
    def item(**sequences: Dataset) -> Dataset:
        made = Dataset()
        for name, inner in sequences.items():
            setattr(made, name, Sequence([inner]))
        return made

    def inner(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    windows = [item(FrameVOILUTSequence=inner(WindowCenter=c, WindowWidth=101)) for c in (50, 100, 250)]
    shared = item(PixelValueTransformationSequence=inner(RescaleSlope=2, RescaleIntercept=-10))
    content = dicom(
        FRAMES[0],
        NumberOfFrames=3,
        PixelData=FRAMES.tobytes(),
        PerFrameFunctionalGroupsSequence=Sequence(windows),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    for frame, centre in ((1, 50), (2, 100), (3, 250)):
        values = FRAMES[frame - 1] * 2.0 - 10
        expected = np.clip((values - (centre - 0.5)) / 100 + 0.5, 0, 1)
        np.testing.assert_allclose(shown(content, frame)[:, :, 0], expected, atol=1e-6)
