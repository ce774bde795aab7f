"""The feature table: one ordered definition of every input, for training and for serving.

A feature is one clinical quantity in one canonical UCUM unit. Its position in `FEATURES` is its
channel number, in the patient window and on disk, so the table only ever grows at its end.

Sources: LOINC 2.80 codes; ISO/IEEE 11073-10101 (MDC) reference numbers. `low` and `high` bound what
a living patient can show, in the canonical unit: a value outside is an artefact and is rejected.
`fill` is a typical adult value (medians of ICU stays), used where a feature has never been observed.
"""

from typing import Literal

from msgspec import Struct

LOINC = "http://loinc.org"
MDC = "urn:iso:std:iso:11073:10101"


class Feature(Struct, frozen=True):
    """One clinical quantity.

    Attributes:
        name: snake_case name, used in model configs and alerts.
        loinc: LOINC codes that map here; the first is the canonical one.
        mdc: ISO/IEEE 11073-10101 reference numbers that map here.
        unit: canonical UCUM unit.
        low: smallest plausible value, in `unit`, inclusive.
        high: largest plausible value, in `unit`, inclusive.
        fill: value given to a model where none was ever observed, in `unit`.
        kind: "series" changes over a stay and lives in hourly bins; "static" describes the patient.
        molar_mass: grams per mole, where laboratories report both mass and substance concentrations.
        charge: elementary charges of the ion, for those that laboratories also report in equivalents.
    """

    name: str
    loinc: tuple[str, ...]
    mdc: tuple[str, ...]
    unit: str
    low: float
    high: float
    fill: float
    kind: Literal["series", "static"] = "series"
    molar_mass: float | None = None
    charge: int | None = None


FEATURES: tuple[Feature, ...] = (
    Feature("age", ("30525-0",), (), "a", 0, 130, 67, "static"),
    # 1 is male, 0 is female: the coding of the Challenge 2012 data, sent with unit "1".
    Feature("sex", ("46098-0",), (), "1", 0, 1, 1, "static"),
    Feature("height", ("8302-2", "3137-7"), ("188740",), "cm", 30, 250, 170, "static"),
    # 1 coronary care, 2 cardiac surgery recovery, 3 medical, 4 surgical; a local code, not LOINC.
    Feature("icu_type", ("riskstream-icu-type",), (), "1", 1, 4, 3, "static"),
    Feature("weight", ("29463-7", "3141-9"), ("188736",), "kg", 1, 400, 80),
    Feature("heart_rate", ("8867-4",), ("147842", "149530", "149546"), "/min", 10, 300, 86),
    Feature("respiratory_rate", ("9279-1",), ("151562", "151570"), "/min", 1, 100, 19),
    Feature("oxygen_saturation", ("59408-5", "2708-6"), ("150456",), "%", 30, 100, 97),
    Feature("temperature", ("8310-5", "8331-1"), ("150364",), "Cel", 25, 45, 37.1),
    Feature("systolic_pressure", ("8480-6", "76534-7"), ("150017", "150021"), "mm[Hg]", 20, 300, 118),
    Feature("diastolic_pressure", ("8462-4", "76535-4"), ("150018", "150022"), "mm[Hg]", 10, 220, 57),
    Feature("mean_pressure", ("8478-0", "76536-2"), ("150019", "150023"), "mm[Hg]", 15, 250, 76),
    Feature("systolic_pressure_invasive", ("76215-3",), ("150033", "150037"), "mm[Hg]", 20, 300, 118),
    Feature("diastolic_pressure_invasive", ("76213-8",), ("150034", "150038"), "mm[Hg]", 10, 220, 59),
    Feature("mean_pressure_invasive", ("76214-6",), ("150035", "150039"), "mm[Hg]", 15, 250, 79),
    Feature("gcs", ("9269-2",), (), "1", 3, 15, 13),
    Feature("fio2", ("3150-0", "19994-3"), ("152196",), "%", 15, 100, 50),
    # 1 while ventilated, 0 when stated not to be.
    Feature("mechanical_ventilation", ("riskstream-mechanical-ventilation",), (), "1", 0, 1, 0),
    # What was passed since the last measurement; a 24-hour collection (3167-4, 9192-6) is another quantity.
    Feature("urine_output", ("9187-6",), (), "mL", 0, 5000, 80),
    Feature("arterial_ph", ("2744-1",), (), "1", 6.5, 8.0, 7.38),
    Feature("arterial_pco2", ("2019-8",), (), "mm[Hg]", 5, 200, 39),
    Feature("arterial_po2", ("2703-7",), (), "mm[Hg]", 15, 700, 117),
    Feature("hematocrit", ("4544-3", "20570-8"), (), "%", 5, 75, 30),
    Feature("potassium", ("2823-3", "6298-4"), (), "mmol/L", 1, 15, 4.1, molar_mass=39.098, charge=1),
    Feature("sodium", ("2951-2", "2947-0"), (), "mmol/L", 90, 200, 139, molar_mass=22.990, charge=1),
    Feature("magnesium", ("2601-3", "19123-9"), (), "mmol/L", 0.1, 10, 0.82, molar_mass=24.305, charge=2),
    Feature("bicarbonate", ("1963-8", "1959-6"), (), "mmol/L", 2, 60, 23, charge=1),
    Feature("platelets", ("777-3", "26515-7"), (), "10*3/uL", 1, 2500, 172),
    Feature("leukocytes", ("6690-2", "26464-8"), (), "10*3/uL", 0, 500, 11.4),
    Feature("creatinine", ("2160-0", "38483-4"), (), "mg/dL", 0.05, 40, 1.0, molar_mass=113.12),
    # The nitrogen in urea: two atoms a molecule, so millimoles of urea are 28.014 mg of nitrogen.
    Feature("urea_nitrogen", ("3094-0", "6299-2"), (), "mg/dL", 0.5, 300, 21, molar_mass=28.014),
    Feature("glucose", ("2345-7", "2339-0"), (), "mg/dL", 5, 2000, 127, molar_mass=180.156),
    Feature("lactate", ("2524-7", "32693-4", "2518-9"), (), "mmol/L", 0.05, 50, 1.9, molar_mass=90.078),
    Feature("bilirubin", ("1975-2",), (), "mg/dL", 0, 100, 0.7, molar_mass=584.66),
    Feature("ast", ("1920-8",), (), "U/L", 1, 50000, 43),
    Feature("alt", ("1742-6",), (), "U/L", 1, 50000, 32),
    Feature("alkaline_phosphatase", ("6768-6",), (), "U/L", 1, 10000, 77),
    Feature("albumin", ("1751-7",), (), "g/dL", 0.3, 8, 2.9),
    Feature("troponin_t", ("6598-7", "67151-1"), (), "ug/L", 0, 200, 0.2),
    Feature("troponin_i", ("10839-9", "89579-7"), (), "ug/L", 0, 1000, 4.5),
    Feature("cholesterol", ("2093-3",), (), "mg/dL", 10, 1500, 153, molar_mass=386.65),
)

CHANNEL: dict[str, int] = {feature.name: channel for channel, feature in enumerate(FEATURES)}
"""Feature name -> channel number."""

BY_LOINC: dict[str, int] = {code: c for c, feature in enumerate(FEATURES) for code in feature.loinc}
"""LOINC code -> channel number."""

BY_MDC: dict[str, int] = {code: c for c, feature in enumerate(FEATURES) for code in feature.mdc}
"""MDC reference number, as decimal text -> channel number."""

STATIC: tuple[int, ...] = tuple(c for c, feature in enumerate(FEATURES) if feature.kind == "static")
"""Channels that describe the patient rather than an hour."""

IS_STATIC: tuple[bool, ...] = tuple(feature.kind == "static" for feature in FEATURES)
"""Per channel: whether the feature is static."""
