"""Unit conversion: a value in any commensurable UCUM unit -> the feature's canonical unit.

Every conversion between two units here is affine, so it is worked out once per (channel, unit), by
`schemas.ucum`, and kept as a scale and an offset. `accept` is the one test that every value passes, in
training and in serving.
"""

import math
from functools import lru_cache

from schemas.errors import UnitError
from schemas.features import FEATURES


@lru_cache(maxsize=4096)
def conversion(channel: int, unit: str) -> tuple[float, float]:
    """The affine map from `unit` to the canonical unit of the feature in `channel`.

    Args:
        channel: position in `FEATURES`.
        unit: UCUM text, or one of a few common non-UCUM spellings.

    Returns:
        (scale, offset): canonical = value * scale + offset.

    Raises:
        UnitError: the unit is not UCUM (`unknown-unit`) or measures something else (`wrong-unit`).
    """
    feature = FEATURES[channel]
    if unit == feature.unit:
        return 1.0, 0.0
    # Imported here: it takes half a second, and most commands convert nothing.
    from schemas import ucum

    return ucum.affine(feature, unit)


def prepare() -> None:
    """Load what conversions need, so that no record waits for it."""
    from schemas import ucum  # noqa: F401


def accept(channel: int, value: float, unit: str) -> float:
    """A measured value in the canonical unit of the feature in `channel`.

    Raises:
        UnitError: the unit cannot be converted (`unknown-unit`, `wrong-unit`), or the value is not finite
            (`non-finite-value`) or outside what a living patient can show (`implausible-value`).
    """
    scale, offset = conversion(channel, unit)
    canonical = value * scale + offset
    feature = FEATURES[channel]
    if feature.low <= canonical <= feature.high:
        return canonical
    if not math.isfinite(canonical):
        raise UnitError("the value is not a finite number", reason="non-finite-value")
    raise UnitError(
        f"{feature.name} is plausible from {feature.low} to {feature.high} {feature.unit}",
        reason="implausible-value",
    )
