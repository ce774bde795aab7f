"""UCUM unit texts and what a feature's unit is in them. Parsed by ucumvert, converted by pint.

To import this module builds pint's registry, which takes half a second: `schemas.units` does so when the
first unit comes that is not canonical, or beforehand.
"""

import re
from typing import Any

import pint
from lark.exceptions import LarkError
from ucumvert import PintUcumRegistry

from schemas.errors import UnitError
from schemas.features import Feature

MAX_UNIT_LENGTH = 32
"""Longest unit text looked at. The longest UCUM unit in clinical use has under 25 characters."""

_ALIASES = {
    "mmHg": "mm[Hg]",
    "bpm": "/min",
    "breaths/min": "/min",
    "beats/min": "/min",
    "degC": "Cel",
    "°C": "Cel",
    "degF": "[degF]",
    "°F": "[degF]",
    "mEq/L": "meq/L",
    "K/uL": "10*3/uL",
    # For enzymes, laboratories write the international unit and mean the enzyme unit.
    "IU/L": "U/L",
    "[IU]/L": "U/L",
    "pH": "1",
    "[pH]": "1",
    "": "1",
}
"""What monitors and laboratories send for a UCUM unit. None of them means another quantity of the table."""

_ANNOTATION = re.compile(r"\{[^{}]*\}")
# A huge exponent ("10*999999") would make pint compute for minutes.
_LONG_NUMBER = re.compile(r"\d{3,}")

# The equivalent, an atom of its own with or without a prefix: pint takes it for a mole, whatever the charge.
_EQUIVALENT = re.compile(r"(?:^|[./(])[a-zA-Z]?eq(?![a-zA-Z])")

_registry: Any = PintUcumRegistry()


def affine(feature: Feature, unit: str) -> tuple[float, float]:
    """The affine map from `unit` to the canonical unit of a feature: (scale, offset).

    Raises:
        UnitError: the unit is not UCUM (`unknown-unit`) or measures something else (`wrong-unit`).
    """
    source = _parse(unit)
    target = _parse(feature.unit)
    context: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}
    if feature.molar_mass is not None:
        context, arguments = ("chemistry",), {"mw": _registry.Quantity(feature.molar_mass, "g/mol")}
    try:
        zero = _registry.Quantity(0.0, source).to(target, *context, **arguments).magnitude
        one = _registry.Quantity(1.0, source).to(target, *context, **arguments).magnitude
    except (pint.PintError, ArithmeticError) as error:
        raise _wrong_unit(feature) from error
    return float(one - zero) / _equivalents_per_mole(feature, unit), float(zero)


def _equivalents_per_mole(feature: Feature, unit: str) -> int:
    if not _EQUIVALENT.search(_plain(unit)):
        return 1
    if feature.charge is None:
        raise _wrong_unit(feature)
    return feature.charge


def _wrong_unit(feature: Feature) -> UnitError:
    return UnitError(
        f"this unit does not measure {feature.name}; send {feature.unit} or a multiple of it",
        reason="wrong-unit",
    )


def _plain(unit: str) -> str:
    """The unit without annotations, in UCUM's spelling."""
    unit = _ANNOTATION.sub("", unit).strip()
    return _ALIASES.get(unit, unit)


def _parse(unit: str) -> Any:
    if len(unit) > MAX_UNIT_LENGTH or _LONG_NUMBER.search(unit):
        raise UnitError("not a UCUM unit")
    try:
        parsed = _registry.from_ucum(_plain(unit))
        return parsed.units if hasattr(parsed, "units") else _registry.dimensionless
    except (LarkError, pint.PintError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UnitError("not a UCUM unit; see ucum.org for how to write it") from error
