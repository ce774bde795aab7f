"""Colours as DICOM means them, against arrays made here and pydicom's bars of known colours."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import JPEG2000, ExplicitVRBigEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from engines import images
from tests.engines.dicom_files import colours, grey, held, palette, with_syntax, wrapped
from tests.engines.pictures import dicom, encoded

BARS = [
    *((255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255)),
    *((128, 128, 255), (0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255)),
]
"""The ten bars of pydicom's colour files, from above: pure and half colours, then greys."""


@pytest.mark.parametrize(
    "name",
    [
        *("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+n2"),
        *("SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_dcmtk_+eb+cy+s4", "SC_rgb_gdcm_KY"),
        *("SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_jls_lossy_line"),
        *("SC_rgb_jls_lossy_sample", "SC_rgb_rle", "SC_rgb_rle_16bit", "SC_rgb_rle_2frame"),
        *("SC_rgb_rle_16bit_2frame", "SC_ybr_full_422_uncompressed"),
    ],
)
def test_colour_bars_have_their_colours(name: str) -> None:
    picture = shown(held(name), frame=1)
    assert picture.shape == (100, 100, 3)
    np.testing.assert_allclose(picture[5::10, 50], np.array(BARS) / 255, atol=8 / 255)


shown = images.decode
RGB = colours()
HUES = RGB / 255


def ybr(rgb: NDArray[Any]) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.2, rounded."""
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float64
    )
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def half_colour(full: NDArray[np.uint8]) -> bytes:
    """YBR_FULL_422: two luminances, then the colour differences of the first of the two."""
    pairs = full.reshape(-1, 2, 3)
    return np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=1).tobytes()


def jpeg_2000(photometric: str, syntax: Any, **options: Any) -> bytes:
    dataset = dcmread(io.BytesIO(dicom(RGB)))
    dataset.PhotometricInterpretation = photometric
    dataset.compress(syntax, generate_instance_uid=False, **options)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "atol"),
    [
        (dicom(RGB), 0),
        (dicom(RGB, PlanarConfiguration=1, PixelData=RGB.transpose(2, 0, 1).tobytes()), 0),
        (dicom(RGB, ExplicitVRBigEndian), 0),
        (dicom(RGB.astype(np.uint16) * 257), 0),
        (dicom(RGB.astype(np.uint16) * 16, BitsStored=12, HighBit=11), 1 / 255),
        (with_syntax(dicom(RGB), RLELossless), 0),
        (jpeg_2000("YBR_RCT", JPEG2000Lossless), 0),
        (jpeg_2000("RGB", JPEG2000Lossless), 0),
        (jpeg_2000("YBR_ICT", JPEG2000, j2k_psnr=[60]), 3 / 255),
        (dicom(ybr(RGB), PhotometricInterpretation="YBR_FULL"), 2 / 255),
        (
            dicom(
                ybr(RGB),
                PhotometricInterpretation="YBR_FULL",
                PlanarConfiguration=1,
                PixelData=ybr(RGB).transpose(2, 0, 1).tobytes(),
            ),
            2 / 255,
        ),
        (dicom(RGB, PhotometricInterpretation="YBR_FULL_422", PixelData=half_colour(ybr(RGB))), 8 / 255),
        (
            wrapped(
                encoded(RGB, "JPEG", quality=98),
                RGB,
                JPEGBaseline8Bit,
                PhotometricInterpretation="YBR_FULL_422",
            ),
            12 / 255,
        ),
        (wrapped(encoded(RGB, "JPEG", quality=98, keep_rgb=True), RGB, JPEGBaseline8Bit), 6 / 255),
    ],
    ids=[
        *("rgb", "rgb-planes", "rgb-big-endian", "rgb-16", "rgb-12", "rle", "rct", "j2k-rgb", "ict"),
        *("ybr", "ybr-planes", "ybr-422", "jpeg-ybr", "jpeg-rgb"),
    ],
)
def test_colours(content: bytes, atol: float) -> None:
    expected = (RGB.astype(np.uint16) * 16 / 4095) if atol == 1 / 255 else HUES
    np.testing.assert_allclose(shown(content), expected, atol=atol + 1e-6)


LEVELS = np.arange(256)
CODES = grey(np.uint8, 255)


def by_colour(part: str, values: list[Any]) -> dict[str, Any]:
    names = (f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue"))
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize(
    "attributes",
    [
        palette(),
        palette()
        | by_colour("Descriptor", [[256, 0, 8]] * 3)
        | by_colour(
            "Data", [LEVELS.astype(np.uint8).tobytes(), bytes(range(255, -1, -1)), bytes([51]) * 256]
        ),
        palette()
        | by_colour("Descriptor", [[256, 0, 8]] * 3)
        | by_colour(
            "Data", [line.astype("<u2").tobytes() for line in (LEVELS, 255 - LEVELS, LEVELS * 0 + 51)]
        ),
    ],
    ids=["16-bit", "8-bit", "8-bit-in-words"],
)
def test_palettes(attributes: dict[str, Any]) -> None:
    expected = np.stack([CODES / 255, 1 - CODES / 255, np.full(CODES.shape, 0.2)], axis=-1)
    np.testing.assert_allclose(shown(dicom(CODES, **attributes)), expected, atol=1e-6)
    compressed = with_syntax(dicom(CODES, **attributes), RLELossless)
    np.testing.assert_allclose(shown(compressed), expected, atol=1e-6)


def test_a_palette_wider_than_its_entries() -> None:
    """16-bit codes with 8-bit colours, from a first code that is not 0."""
    count = 1000
    ramp = (np.arange(count) // 4).astype(np.uint8)
    attributes = palette() | by_colour("Descriptor", [[count, 50, 8]] * 3)
    attributes |= by_colour("Data", [ramp.tobytes()] * 3)
    codes = np.array([[0, 50, 450, 1049, 60000]], dtype=np.uint16)
    expected = ramp[[0, 0, 400, 999, 999]] / 255
    np.testing.assert_allclose(shown(dicom(codes, **attributes))[0, :, 1], expected, atol=1e-6)
