"""Pictures: what a decoder must give back, what it must refuse, and how they are made to fit."""

import io
import logging
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from engines import dicom_grey, images, limits
from engines.errors import ExtraError, ImageError
from schemas.model_config import ImageInput
from tests.engines.pictures import dicom, encoded

RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12)
WHOLE = (encoded(RAMP), encoded(RAMP, "JPEG"), dicom(RAMP))
GREY = ImageInput(height=8, width=12)


def decoded(content: bytes) -> NDArray[np.float32]:
    picture = images.decode(content)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    return picture


def test_eight_bit_grey_is_exact_in_every_format() -> None:
    expected = RAMP[:, :, None] / np.float32(255)
    for content in (encoded(RAMP), dicom(RAMP, WindowCenter=128, WindowWidth=256)):
        np.testing.assert_allclose(decoded(content), expected, atol=1e-7)
    np.testing.assert_allclose(decoded(encoded(RAMP, "JPEG", quality=100)), expected, atol=0.01)


def test_sixteen_bits_keep_their_depth() -> None:
    deep = np.array([[0, 1, 257, 65535]], dtype=np.uint16)
    expected = (deep / 65535).astype(np.float32)
    np.testing.assert_allclose(decoded(encoded(deep))[:, :, 0], expected, atol=1e-7)
    shown = decoded(dicom(deep, WindowCenter=32768, WindowWidth=65536))
    np.testing.assert_allclose(shown[:, :, 0], expected, atol=1e-6)


def test_colours_transparency_and_palettes() -> None:
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(decoded(encoded(red))[0, 0], [1, 0, 0])
    faint = np.dstack([red, np.full((2, 2), 51, dtype=np.uint8)])
    np.testing.assert_allclose(decoded(encoded(faint))[0, 0], [0.2, 0, 0], atol=1e-6)
    file = io.BytesIO()
    Image.fromarray(red).convert("P").save(file, "PNG")
    np.testing.assert_array_equal(decoded(file.getvalue())[0, 0], [1, 0, 0])
    file = io.BytesIO()
    Image.fromarray(RAMP > 40).save(file, "PNG")
    assert set(decoded(file.getvalue()).ravel()) == {0.0, 1.0}


def test_grey_kept_as_colour_is_grey() -> None:
    assert decoded(encoded(np.dstack([RAMP] * 3))).shape == (8, 12, 1)


def test_a_turned_photograph_is_turned_back() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    assert decoded(encoded(RAMP, "JPEG", exif=exif)).shape == (12, 8, 1)


def test_dicom_rescale_window_and_inversion() -> None:
    stored = np.array([[0, 100, 200, 300]], dtype=np.int16)
    hounsfield: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -100}
    shown = decoded(dicom(stored, **hounsfield, WindowCenter=[100, 0], WindowWidth=[201, 1]))
    np.testing.assert_allclose(shown[0, :, 0], [0, 0.5025, 1, 1], atol=1e-6)
    inverted = decoded(
        dicom(
            stored, **hounsfield, WindowCenter=100, WindowWidth=201, PhotometricInterpretation="MONOCHROME1"
        )
    )
    np.testing.assert_allclose(inverted, 1 - shown, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", [0, 0.50251256, 1]),
        ("LINEAR_EXACT", [0, 0.5, 1]),
        ("SIGMOID", [0.11920292, 0.5, 0.88079708]),
    ],
)
def test_window_functions(function: str, expected: list[float]) -> None:
    found = dicom_grey.window(np.array([0.0, 100.0, 200.0]), 100, 200, function)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("width", "function"), [(0.5, "LINEAR"), (0, "SIGMOID"), (-1, "LINEAR_EXACT"), (9, "X")]
)
def test_windows_that_are_none(width: float, function: str) -> None:
    with pytest.raises(ImageError, match="positive width"):
        dicom_grey.window(np.zeros(1), 0, width, function)


def test_dicom_without_a_window_spans_its_values_and_blackens_padding() -> None:
    stored = np.array([[-2000, 10, 20, 30]], dtype=np.int16)
    shown = decoded(dicom(stored, PixelPaddingValue=-2000))
    np.testing.assert_allclose(shown[0, :, 0], [0, 0, 0.5, 1], atol=1e-6)
    assert not decoded(dicom(np.full((2, 2), 7, dtype=np.uint16))).any()


def test_dicom_lookup_table() -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.add_new("LUTData", "OW", np.array([0, 255, 51, 102], dtype="<u2").tobytes())
    shown = decoded(dicom(np.array([[0, 1, 2, 3]], dtype=np.uint8), VOILUTSequence=Sequence([table])))
    np.testing.assert_allclose(shown[0, :, 0], [0, 1, 0.2, 0.4], atol=1e-6)


def test_dicom_colours_and_palette() -> None:
    colours = np.zeros((2, 2, 3), dtype=np.uint8)
    colours[..., 1] = 255
    np.testing.assert_array_equal(decoded(dicom(colours))[0, 0], [0, 1, 0])
    luts: dict[str, Any] = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, level in (("Red", 255), ("Green", 0), ("Blue", 0))
        for part, value in (("Descriptor", [2, 0, 8]), ("Data", bytes([0, level])))
    }
    content = dicom(np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **luts)
    np.testing.assert_array_equal(decoded(content)[0], [[0, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_dicom(syntax: UID) -> None:
    pixels = np.tile(RAMP, (8, 8))
    dataset = dcmread(io.BytesIO(dicom(pixels, WindowCenter=128, WindowWidth=256)))
    dataset.compress(syntax)
    file = io.BytesIO()
    dataset.save_as(file)
    np.testing.assert_allclose(decoded(file.getvalue())[:, :, 0], pixels / np.float32(255), atol=1e-7)


def test_dicom_of_another_kind_is_refused_without_telling_it() -> None:
    content = dicom(RAMP, Modality="CT", BodyPartExamined="JOHN DOE", ViewPosition="PA")
    images.decode(content, ImageInput(height=8, width=8, modality=("ct",), view=("PA", "AP")))
    for accepted in (
        ImageInput(height=8, width=8, modality=("CR", "DX")),
        ImageInput(height=8, width=8, body_part=("CHEST",)),
        ImageInput(height=8, width=8, view=("LATERAL",)),
    ):
        with pytest.raises(ImageError, match="must be one of") as caught:
            images.decode(content, accepted)
        assert "DOE" not in str(caught.value)
    assert not logging.getLogger("pydicom.pixels").isEnabledFor(logging.CRITICAL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither PNG, JPEG nor DICOM"),
        (b"GIF89a" + bytes(400), "neither PNG, JPEG nor DICOM"),
        (encoded(RAMP)[:50], "damaged"),
        (encoded(RAMP, "JPEG")[:300], "damaged"),
        (dicom(RAMP)[:-20], "76 bytes; the header asks for 96"),
        (dicom(RAMP, NumberOfFrames=2), "several frames"),
        (dicom(RAMP, Rows=60000, Columns=60000), "reduce it first"),
        (dicom(RAMP, Rows=0), "a picture of 12 x 0 pixels"),
        (dicom(RAMP, WindowCenter=1, WindowWidth=0), "positive width"),
    ],
)
def test_what_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        images.decode(content)


def test_limits_hold_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    width = height = 60_000
    header = b"\0\0\0\rIHDR" + width.to_bytes(4) + height.to_bytes(4) + b"\x08\0\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n" + header + zlib.crc32(header[4:]).to_bytes(4) + b"\0\0\0\0IEND\xaeB`\x82"
    with pytest.raises(ImageError, match="reduce it first"):
        images.decode(bomb)
    monkeypatch.setattr(limits, "MAX_PIXELS", 95)
    with pytest.raises(ImageError, match="12 x 8 pixels; 95 are taken"):
        images.decode(encoded(RAMP))
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="10 are taken"):
        images.decode(encoded(RAMP))


def test_dicom_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ExtraError, match=r"pip install 'riskstream\[dicom\]'"):
        images.decode(dicom(RAMP))
    images.decode(encoded(RAMP))


def test_moving_pictures_and_deflated_dicom_are_refused() -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="several pictures"):
        images.decode(file.getvalue())
    with pytest.raises(ImageError, match="deflated"):
        images.decode(dicom(RAMP, DeflatedExplicitVRLittleEndian))


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([encoded(RAMP), encoded(RAMP, "JPEG"), dicom(RAMP)]), st.data()
)
def test_any_bytes_decode_or_are_refused(noise: bytes, whole: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    for content in (noise, whole[:start] + noise + whole[start + len(noise) :]):
        try:
            picture = images.decode(content)
        except ImageError:
            continue
        assert picture.ndim == 3
        assert np.isfinite(picture).all()


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    picture = images.from_bytes(RAMP)
    np.testing.assert_array_equal(images.prepare(picture, GREY)[0], picture[:, :, 0])


def test_fits() -> None:
    wide = np.ones((10, 40, 1), dtype=np.float32)
    wide[:, :10] = wide[:, 30:] = 0.5
    square: dict[str, Any] = {"height": 20, "width": 20}
    padded = images.prepare(wide, ImageInput(**square, fit="pad"))[0]
    assert not padded[:7].any()
    assert not padded[13:].any()
    assert padded[8:12].min() >= 0.49
    cropped = images.prepare(wide, ImageInput(**square, fit="crop"))[0]
    np.testing.assert_allclose(cropped[:, 6:14], 1)
    stretched = images.prepare(wide, ImageInput(**square, fit="stretch"))[0]
    assert stretched[:, :4].max() < 0.51
    np.testing.assert_allclose(stretched[:, 8:12], 1)


def test_reducing_averages_what_lies_between() -> None:
    checks = np.indices((64, 64)).sum(axis=0)[:, :, None] % 2
    small = images.prepare(checks.astype(np.float32), ImageInput(height=8, width=8))
    np.testing.assert_allclose(small, 0.5, atol=0.05)


def test_channels() -> None:
    colours = np.zeros((8, 12, 3), dtype=np.float32)
    colours[..., 1] = 1
    np.testing.assert_allclose(images.prepare(colours, GREY), 0.587, atol=1e-6)
    grey = images.prepare(images.from_bytes(RAMP), ImageInput(height=8, width=12, channels=3))
    assert grey.shape == (3, 8, 12)
    np.testing.assert_array_equal(grey[0], grey[2])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["pad", "crop", "stretch"]),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
)
def test_any_shape_fits(height: int, width: int, fit: Any, planes: int, channels: Any) -> None:
    picture = np.random.default_rng(0).random((height, width, planes), dtype=np.float32)
    wanted = ImageInput(height=16, width=24, channels=channels, fit=fit)
    made = images.prepare(picture, wanted)
    assert made.shape == wanted.dims
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1


def test_an_overlay_is_red_where_the_evidence_is() -> None:
    evidence = np.full((7, 7), -1, dtype=np.float32)
    evidence[1, 5] = 3
    content = images.overlay(np.full((1, 28, 28), 0.5, dtype=np.float32), evidence)
    with Image.open(io.BytesIO(content)) as image:
        shown = np.asarray(image, dtype=np.int16)
    assert shown.shape == (224, 224, 3)
    redness = shown[:, :, 0] - shown[:, :, 2]
    row, column = divmod(int(redness.argmax()), 224)
    assert (row // 32, column // 32) == (1, 5)
    assert not redness[150:, :100].any()
    assert len(content) < 60_000
    evidence[0, 0] = -30
    with Image.open(io.BytesIO(images.overlay(np.full((1, 28, 28), 0.5, np.float32), evidence))) as image:
        faint = np.asarray(image, dtype=np.int16)
    assert 0 < (faint[:, :, 0] - faint[:, :, 2]).max() < redness.max() / 5
    assert images.overlay(np.zeros((1, 8, 8), np.float32), np.zeros((2, 2), np.float32), 16)
