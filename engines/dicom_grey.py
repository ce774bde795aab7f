"""From stored grey values to what a screen would show: DICOM's tables and windows, PS3.3 C.11 and C.7.6.3.

    stored -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 or INVERSE turned over -> [0, 1]

Works in bands of rows, so that a large picture costs its own size and not a multiple in 64 bits.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.engine import F32
from engines.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

Values = NDArray[np.float64]
Stored = NDArray[np.integer[Any]]

BAND = 1 << 19
"""Pixels that are worked on at once: 4 MB as 64-bit numbers."""

MOST = 1e15
"""Of a rescale's or window's numbers: their products with any pixel stay far from infinity."""


class Table(NamedTuple):
    """A lookup table. first: the value that the first entry is for; bits: of an entry."""

    first: int
    entries: Values
    bits: int


class Look(NamedTuple):
    """What the file says of how its grey values are meant.

    modality, voi: tables, which go before rescale and window.
    padding: the lowest and highest stored value that is no picture.
    inverted: the least value is white.
    """

    modality: Table | None = None
    slope: float = 1.0
    intercept: float = 0.0
    voi: Table | None = None
    window: tuple[float, float, str] | None = None
    padding: tuple[int, int] | None = None
    inverted: bool = False


def shown(stored: Stored, look: Look) -> F32:
    """What a screen would show of stored[height, width]: float32[height, width, 1] in [0, 1].

    Without window or table, the least value becomes black and the greatest white. Padding becomes black.

    Raises:
        ImageError: the window is none.
    """
    picture = np.empty((*stored.shape, 1), dtype=np.float32)
    show = _voi(stored, look)
    for rows in _bands(stored):
        values = show(_modality(stored[rows], look))
        if look.inverted:
            values = 1 - values
        values[_is_padding(stored[rows], look)] = 0
        picture[rows, :, 0] = values
    return picture


def window(values: Values, centre: float, width: float, function: str) -> Values:
    """Values through a window, in [0, 1]: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ImageError: the window has no width, or its function is unknown.
    """
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return np.asarray(values > centre - 0.5, dtype=np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise ImageError(
        "invalid-window", "a window that is not LINEAR, LINEAR_EXACT or SIGMOID with a positive width"
    )


def look_up(values: Values | Stored, table: Table) -> Values:
    """Entries of a table; what lies before the first or after the last takes that one."""
    places = np.rint(values).astype(np.int64) - table.first
    return table.entries[np.clip(places, 0, len(table.entries) - 1)]


def table(descriptor: Any, data: Any, big_endian: bool) -> Table:
    """A table from its descriptor (entries, first value, bits) and data (bytes, or a list of numbers).

    Raises:
        ImageError: the data are shorter than the descriptor says, or it is none.
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count or 1 << 16
    if not (0 < count <= 1 << 16 and 1 <= bits <= 16):
        raise ImageError("damaged-header", "a lookup table of no known shape")
    if isinstance(data, bytes):
        packed = len(data) < 2 * count
        words = np.frombuffer(data[: len(data) // 2 * 2], dtype=">u2" if big_endian else "<u2")
        entries = words.astype("<u2").view(np.uint8) if packed else words
        bits = min(bits, 8) if packed else bits
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64))
    if len(entries) < count:
        raise ImageError("damaged-header", "a lookup table shorter than it says")
    return Table(first, np.asarray(entries[:count] & ((1 << bits) - 1), dtype=np.float64), bits)


def look_of(dataset: "Dataset", frame: int, inverted: bool) -> Look:
    """What a file says of one frame (from 1), from its own attributes or its functional groups.

    Raises:
        ImageError: a table is damaged.
    """
    modality = _with(dataset, frame, "PixelValueTransformationSequence", "RescaleSlope")
    voi = _with(dataset, frame, "FrameVOILUTSequence", "WindowCenter")
    centre, width = voi.get("WindowCenter"), voi.get("WindowWidth")
    padding = dataset.get("PixelPaddingValue")
    other = dataset.get("PixelPaddingRangeLimit", padding)
    intercept = _first(modality.get("RescaleIntercept", 0))
    shades = _table(dataset, voi.get("VOILUTSequence"))
    if shades and intercept < 0 and shades.first > 1 << 15:  # negative, and read as if it could not be
        shades = shades._replace(first=shades.first - (1 << 16))
    return Look(
        modality=_table(dataset, dataset.get("ModalityLUTSequence")),
        slope=_first(modality.get("RescaleSlope", 1)),
        intercept=intercept,
        voi=shades,
        window=None
        if centre is None or width is None
        else (_first(centre), _first(width), str(voi.get("VOILUTFunction") or "LINEAR")),
        padding=None if padding is None else (min(int(padding), int(other)), max(int(padding), int(other))),
        inverted=inverted,
    )


def _with(dataset: "Dataset", frame: int, group: str, attribute: str) -> "Dataset":
    """Where an attribute of a frame stands: in the file, in the frame's group, or in the shared one."""
    if attribute in dataset:
        return dataset
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame - 1 : frame], *shared[:1]):
        if groups.get(group):
            found: Dataset = groups[group].value[0]
            return found
    return dataset


def _table(dataset: "Dataset", items: Any) -> Table | None:
    if not items:
        return None
    big_endian = not dataset.original_encoding[1]
    return table(items[0].LUTDescriptor, items[0].LUTData, big_endian)


def _first(value: Any) -> float:
    """The first of one or several numbers."""
    number = float(value[0] if hasattr(value, "append") else value)
    if not abs(number) <= MOST:
        raise ImageError("damaged-header", "a rescale or window that is no number of sensible size")
    return number


def _bands(stored: Stored) -> list[slice]:
    step = max(1, BAND // stored.shape[1])
    return [slice(top, top + step) for top in range(0, stored.shape[0], step)]


def _modality(stored: Stored, look: Look) -> Values:
    if look.modality:
        return look_up(stored, look.modality)
    return stored.astype(np.float64) * look.slope + look.intercept


def _voi(stored: Stored, look: Look) -> Callable[[Values], Values]:
    """How values after the modality LUT become shades in [0, 1]."""
    if look.voi:
        voi, white = look.voi, 2.0**look.voi.bits - 1
        return lambda values: look_up(values, voi) / white
    if look.window:
        centre, width, function = look.window
        return lambda values: window(values, centre, width, function)
    low, high = _range(stored, look)
    if not high > low:
        return np.zeros_like
    return lambda values: np.clip((values - low) / (high - low), 0, 1)


def _range(stored: Stored, look: Look) -> tuple[float, float]:
    """The least and the greatest value that is no padding."""
    low, high = np.inf, -np.inf
    for rows in _bands(stored):
        inside = _modality(stored[rows], look)[~_is_padding(stored[rows], look)]
        if inside.size:
            low, high = min(low, float(inside.min())), max(high, float(inside.max()))
    return low, high


def _is_padding(stored: Stored, look: Look) -> NDArray[np.bool_]:
    if look.padding is None:
        return np.zeros(stored.shape, dtype=bool)
    return np.asarray((stored >= look.padding[0]) & (stored <= look.padding[1]))
