"""DICOM files of every transfer syntax and photometric interpretation, each with the pixels put into it.

Compressed ones are made with others' encoders where there are any (Pillow, OpenJPEG), with a small one here
where there is none (lossless JPEG), and are pydicom's own files where neither is (JPEG-LS, 12 bits).
"""

import io
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from tests.engines.pictures import dicom, encoded

HELD = Path(pydicom.data.__file__).parent / "test_files"
"""pydicom's own files that come in its wheel."""

OF_PYDICOM = (
    *("CT_small", "ExplVR_BigEnd", "J2K_pixelrep_mismatch", "JPEG2000", "JPEGLSNearLossless_08"),
    *("JPEGLSNearLossless_16", "JPGExtended", "MR_small_RLE", "MR_small_jp2klossless"),
    *("MR_small_jpeg_ls_lossless", "SC_rgb_dcmtk_+eb+cy+s4", "SC_rgb_jls_lossy_line", "SC_rgb_jpeg_gdcm"),
    *("SC_rgb_rle_2frame", "SC_ybr_full_422_uncompressed", "liver_1frame", "rtdose"),
)


def held(name: str) -> bytes:
    """One of pydicom's own files."""
    return (HELD / f"{name}.dcm").read_bytes()


def grey(dtype: type = np.uint16, top: int = 4095) -> NDArray[Any]:
    """A ramp with a bright corner, [39, 51]: odd sides, so that rows cannot be taken for columns."""
    ramp = np.linspace(0, top, 39 * 51).reshape(39, 51)
    ramp[:3, :5] = top
    return ramp.astype(dtype)


def colours() -> NDArray[np.uint8]:
    """uint8[40, 56, 3]: smooth, so that compression with loss stays near, and unlike in its planes."""
    y, x = np.mgrid[0:40, 0:56]
    return np.stack([x * 4, y * 6, 255 - x * 4], axis=-1).astype(np.uint8)


def with_syntax(content: bytes, syntax: UID) -> bytes:
    """The same file, compressed by pydicom's encoders."""
    dataset = dcmread(io.BytesIO(content))
    dataset.compress(syntax, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def changed(content: bytes, **attributes: Any) -> bytes:
    """The file with other attributes; None removes one."""
    dataset = dcmread(io.BytesIO(content))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom tells of values that do not fit
        for name, value in attributes.items():
            if value is None:
                del dataset[name]
            else:
                setattr(dataset, name, value)
        dataset.save_as(file)
    return file.getvalue()


def wrapped(stream: bytes, pixels: NDArray[Any], syntax: UID, **attributes: Any) -> bytes:
    """A stream in the place of a picture of that shape and type."""
    return dicom(pixels, syntax, **(attributes | {"PixelData": encapsulate([stream])}))


def lossless_jpeg(pixels: NDArray[Any], bits: int, predictor: int = 1) -> bytes:
    """A lossless JPEG stream (ITU-T T.81, process 14) of grey pixels; predictor 1 is the left neighbour,
    4 is left + above - above left. Every category of difference has a code of 5 bits."""
    values = pixels.astype(np.int64)
    left, above = np.roll(values, 1, axis=1), np.roll(values, 1, axis=0)
    guess = left if predictor == 1 else left + above - np.roll(above, 1, axis=1)
    guess[:, 0], guess[0, 1:], guess[0, 0] = above[:, 0], left[0, 1:], 1 << (bits - 1)
    text = []
    for difference in ((values - guess + 32768) % 65536 - 32768).ravel().tolist():
        size = abs(difference).bit_length()
        text.append(f"{size:05b}")
        if 0 < size < 16:
            text.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    padded = "".join(text)
    padded += "1" * (-len(padded) % 8)
    packed = int(padded, 2).to_bytes(len(padded) // 8).replace(b"\xff", b"\xff\x00")
    height, width = pixels.shape
    counts = bytes([0, 0, 0, 0, 17] + [0] * 11)
    return b"".join(
        (
            b"\xff\xd8\xff\xc3\x00\x0b",
            bytes([bits]) + height.to_bytes(2) + width.to_bytes(2) + b"\x01\x01\x11\x00",
            b"\xff\xc4" + (19 + 17).to_bytes(2) + b"\x00" + counts + bytes(range(17)),
            b"\xff\xda\x00\x08\x01\x01\x00" + bytes([predictor]) + b"\x00\x00",
            packed + b"\xff\xd9",
        )
    )


def palette(**attributes: Any) -> dict[str, Any]:
    """Attributes of a palette of 256 colours: red rises, green falls, blue is constant."""
    levels = {"Red": np.arange(256), "Green": 255 - np.arange(256), "Blue": np.full(256, 51)}
    tables: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, values in levels.items():
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = (values * 257).astype("<u2").tobytes()
    return tables | attributes


def bare(content: bytes) -> bytes:
    """A file's data set alone, without preamble and meta information."""
    length = struct.unpack_from("<I", content, 140)[0]
    return content[144 + length :]


@cache
def seeds() -> dict[str, bytes]:
    """Small files, at least one of each transfer syntax and photometric interpretation, by name."""
    deep = grey()
    twelve: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
    jpeg = encoded(colours(), "JPEG", quality=95)
    made = {
        "implicit": dicom(deep, ImplicitVRLittleEndian, **twelve, WindowCenter=2048, WindowWidth=4096),
        "explicit": dicom(deep, **twelve, PhotometricInterpretation="MONOCHROME1"),
        "signed": dicom(grey(np.int16), RescaleSlope=2, RescaleIntercept=-1024, PixelPaddingValue=0),
        "big-endian": dicom(deep.astype(">u2"), ExplicitVRBigEndian, **twelve),
        "32-bit": dicom(grey(np.uint32)),
        "rgb": dicom(colours()),
        "palette": dicom(grey(np.uint8, 255), **palette()),
        "rle": with_syntax(dicom(deep, **twelve), RLELossless),
        "rle-rgb": with_syntax(dicom(colours()), RLELossless),
        "jpeg-2000": with_syntax(dicom(deep, **twelve), JPEG2000Lossless),
        "jpeg-2000-rct": with_syntax(dicom(colours(), PhotometricInterpretation="YBR_RCT"), JPEG2000Lossless),
        "jpeg": wrapped(jpeg, colours(), JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"),
        "jpeg-lossless": wrapped(lossless_jpeg(deep, 12), deep, JPEGLosslessSV1, **twelve),
        "jpeg-lossless-4": wrapped(lossless_jpeg(deep, 12, 4), deep, JPEGLossless, **twelve),
        "frames": dicom(np.zeros((8, 8), np.uint8), NumberOfFrames=3, PixelData=bytes(range(192))),
        "words": dicom(grey(np.uint8, 255), Modality="DX", BodyPartExamined="CHEST", ViewPosition="PA"),
        "png": encoded(grey(np.uint8, 255)),
        "png-16": encoded(deep),
        "png-rgba": encoded(np.dstack([colours(), colours()[..., :1]])),
        "plain-jpeg": jpeg,
        "progressive-jpeg": encoded(colours(), "JPEG", progressive=True),
    }
    assert made["explicit"][132:].find(ExplicitVRLittleEndian.encode()) > 0
    made |= {f"bare-{name}": bare(made[name]) for name in ("implicit", "explicit")}
    made["no-preamble"] = made["jpeg-2000"][132:]
    return made | {name: held(name) for name in OF_PYDICOM}
