"""Reader of the PhysioNet/Computing in Cardiology Challenge 2012 format.

A stay is a text file `RECORD.txt` with the header `Time,Parameter,Value` and lines such as
`07:37,HR,88`: hours and minutes since admission, in time order. `Outcomes-?.txt` has one line a stay.
The source is a folder or a .tar.gz with these anywhere in it, or a folder that holds such archives.

A line becomes an observation with a LOINC code and a UCUM unit, as it would come over the bus; what is
plausible is decided by `schemas.units.accept`, as in the worker. `-1` marks a descriptor that was not
recorded. The data's own description gives magnesium in mmol/L; its values (median 2.0) are mg/dL.
"""

import codecs
import csv
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.errors import DatasetError
from schemas.errors import UnitError
from schemas.features import CHANNEL, FEATURES, IS_STATIC, STATIC
from schemas.units import accept
from schemas.window import CHANNELS, F32

T = TypeVar("T")

PREFIX = "physionet2012:"
"""How this data set is named in commands: `physionet2012:DIR`."""

OUTCOME = "in-hospital death"
"""What the data record of every stay."""

HEADER = "Time,Parameter,Value"
_BEGINNINGS = (HEADER.encode(), codecs.BOM_UTF8 + HEADER.encode())
DESCRIPTORS = frozenset({"Age", "Gender", "Height", "ICUType", "Weight"})

PARAMETERS: dict[str, tuple[str, str, str]] = {
    # parameter: (LOINC or local code, UCUM unit, feature)
    "Age": ("30525-0", "a", "age"),
    "Gender": ("46098-0", "1", "sex"),
    "Height": ("8302-2", "cm", "height"),
    "ICUType": ("riskstream-icu-type", "1", "icu_type"),
    "Weight": ("29463-7", "kg", "weight"),
    "HR": ("8867-4", "/min", "heart_rate"),
    "RespRate": ("9279-1", "/min", "respiratory_rate"),
    "SaO2": ("2708-6", "%", "oxygen_saturation"),
    "Temp": ("8310-5", "Cel", "temperature"),
    "NISysABP": ("8480-6", "mm[Hg]", "systolic_pressure"),
    "NIDiasABP": ("8462-4", "mm[Hg]", "diastolic_pressure"),
    "NIMAP": ("8478-0", "mm[Hg]", "mean_pressure"),
    "SysABP": ("76215-3", "mm[Hg]", "systolic_pressure_invasive"),
    "DiasABP": ("76213-8", "mm[Hg]", "diastolic_pressure_invasive"),
    "MAP": ("76214-6", "mm[Hg]", "mean_pressure_invasive"),
    "GCS": ("9269-2", "1", "gcs"),
    "FiO2": ("3150-0", "1", "fio2"),
    "MechVent": ("riskstream-mechanical-ventilation", "1", "mechanical_ventilation"),
    "Urine": ("9187-6", "mL", "urine_output"),
    "pH": ("2744-1", "1", "arterial_ph"),
    "PaCO2": ("2019-8", "mm[Hg]", "arterial_pco2"),
    "PaO2": ("2703-7", "mm[Hg]", "arterial_po2"),
    "HCT": ("4544-3", "%", "hematocrit"),
    "K": ("2823-3", "meq/L", "potassium"),
    "Na": ("2951-2", "meq/L", "sodium"),
    "Mg": ("2601-3", "mg/dL", "magnesium"),
    "HCO3": ("1963-8", "mmol/L", "bicarbonate"),
    "Platelets": ("777-3", "10*3/uL", "platelets"),
    "WBC": ("6690-2", "10*3/uL", "leukocytes"),
    "Creatinine": ("2160-0", "mg/dL", "creatinine"),
    "BUN": ("3094-0", "mg/dL", "urea_nitrogen"),
    "Glucose": ("2345-7", "mg/dL", "glucose"),
    "Lactate": ("2524-7", "mmol/L", "lactate"),
    "Bilirubin": ("1975-2", "mg/dL", "bilirubin"),
    "AST": ("1920-8", "U/L", "ast"),
    "ALT": ("1742-6", "U/L", "alt"),
    "ALP": ("6768-6", "U/L", "alkaline_phosphatase"),
    "Albumin": ("1751-7", "g/dL", "albumin"),
    "TroponinT": ("6598-7", "ug/L", "troponin_t"),
    "TroponinI": ("10839-9", "ug/L", "troponin_i"),
    "Cholesterol": ("2093-3", "mg/dL", "cholesterol"),
}
"""Every parameter of the Challenge but RecordID."""


class Sample(NamedTuple):
    """One line: `value` in UCUM `unit` of the quantity with LOINC `code`, `minute` after admission."""

    minute: int
    channel: int
    code: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Stay:
    """One ICU stay.

    Attributes:
        record: the RecordID, else the file's name.
        samples: in file order; of two for one minute and channel the later one stands.
        outcome: 1 died in hospital, 0 survived, None where no outcomes file names the stay.
        skipped: lines that are not `HH:MM,known parameter,number`.
        saps1, sofa: severity scores, where the outcomes file gives them.
        survival_days: days from admission to death, whole ones, where the outcomes file gives them.
    """

    record: str
    samples: tuple[Sample, ...]
    outcome: int | None
    skipped: int = 0
    saps1: int | None = None
    sofa: int | None = None
    survival_days: int | None = None


class Outcome(NamedTuple):
    """What an outcomes file says of a stay."""

    died: int
    saps1: int | None
    sofa: int | None
    survival_days: int | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the worker would accept of a stay's series, in time order, and its static features.

    Attributes:
        minute: int64[n], minutes after admission, never falling.
        channel: int64[n].
        value: float32[n], canonical units.
        statics: float32[len(STATIC)], NaN where unknown.
        rejected: observations refused, by reason.
    """

    minute: NDArray[np.int64]
    channel: NDArray[np.int64]
    value: F32
    statics: F32
    rejected: dict[str, int]


class Bins(NamedTuple):
    """Hourly bins: last value and count, each float32[n, channels], and float32[len(STATIC)] statics."""

    values: F32
    counts: F32
    statics: F32


def is_source(argument: str) -> bool:
    """Whether a command's data argument names this data set."""
    return argument.startswith(PREFIX)


def parse_source(argument: str) -> Path:
    """The path in `physionet2012:DIR`.

    Raises:
        DatasetError: the argument is written otherwise, or nothing is there.
    """
    if not is_source(argument) or argument == PREFIX:
        raise DatasetError(
            f"a data set is written {PREFIX}DIR, for example {PREFIX}../shared/data/physionet2012"
        )
    path = Path(argument.removeprefix(PREFIX)).expanduser()
    if not path.exists():
        raise DatasetError(f"no such folder or archive: {path}")
    return path


def read(path: Path) -> list[Stay]:
    """All stays under `path`, by record.

    Raises:
        DatasetError: nothing in the Challenge's format is there, or a file of it is damaged.
    """
    outcomes: dict[str, Outcome] = {}
    stays: dict[str, Stay] = {}
    for name, data in sorted(_files(path)):
        if name.startswith("Outcomes"):
            _add(outcomes, _outcomes(_text(name, data)))
        elif data.startswith(_BEGINNINGS):
            stay = _stay(name.removesuffix(".txt"), _text(name, data))
            _add(stays, {stay.record: stay})
    if not stays:
        raise DatasetError(f"{path} holds no stay: no .txt file, in a .tar.gz or not, starts with {HEADER!r}")
    return [_with_outcome(stay, outcomes.get(record)) for record, stay in sorted(stays.items())]


def _with_outcome(stay: Stay, outcome: Outcome | None) -> Stay:
    if outcome is None:
        return stay
    return replace(
        stay,
        outcome=outcome.died,
        saps1=outcome.saps1,
        sofa=outcome.sofa,
        survival_days=outcome.survival_days,
    )


def _add(known: dict[str, T], found: dict[str, T]) -> None:
    """Take what is found, by record; an archive beside its files gives the same twice, which is no fault."""
    if any(known.get(record, content) != content for record, content in found.items()):
        raise DatasetError(
            "two files give the same RecordID different content; leave one copy of the data set in the folder"
        )
    known |= found


def clean(stay: Stay) -> Accepted:
    """The observations that the worker would accept, in canonical units."""
    minute: list[int] = []
    channel: list[int] = []
    value: list[float] = []
    statics = np.full(len(STATIC), np.nan, dtype=np.float32)
    rejected: dict[str, int] = {}
    for sample in sorted(stay.samples, key=_by_minute):
        try:
            accepted = accept(sample.channel, sample.value, sample.unit)
        except UnitError as error:
            rejected[error.reason] = rejected.get(error.reason, 0) + 1
            continue
        if IS_STATIC[sample.channel]:
            statics[STATIC.index(sample.channel)] = accepted
        else:
            minute.append(sample.minute)
            channel.append(sample.channel)
            value.append(accepted)
    return Accepted(
        np.array(minute, np.int64),
        np.array(channel, np.int64),
        np.array(value, np.float32),
        statics,
        rejected,
    )


def bins(accepted: Accepted, offset_minutes: int = 0, hours: int | None = None) -> Bins:
    """Hourly bins, with the meaning they have in serving: last value by time, count of all accepted.

    Args:
        accepted: from `clean`.
        offset_minutes: how far into a UTC hour the stay began, 0 to 59.
        hours: number of bins; as many as the last observation asks for unless stated. Observations
            from minute 60 * hours - offset on are left out.
    """
    bin_number = (accepted.minute + offset_minutes) // 60
    n = hours if hours is not None else int(bin_number.max(initial=0)) + 1
    inside = bin_number < n
    place = (bin_number[inside], accepted.channel[inside])
    values = np.zeros((n, CHANNELS), dtype=np.float32)
    counts = np.zeros((n, CHANNELS), dtype=np.float32)
    values[place] = accepted.value[inside]  # in time order: the last assignment to a place stands
    np.add.at(counts, place, np.float32(1))
    return Bins(values, counts, accepted.statics)


def to_bins(stay: Stay, offset_minutes: int = 0) -> Bins:
    """`bins` of a stay as read."""
    return bins(clean(stay), offset_minutes)


def digest(stays: list[Stay]) -> str:
    """SHA-256 over the stays, whatever files they came in."""
    total = hashlib.sha256()
    for stay in stays:
        total.update(f"{stay.record},{stay.outcome}\n".encode())
        for sample in stay.samples:
            total.update(f"{sample.minute},{sample.code},{sample.value!r},{sample.unit}\n".encode())
    return total.hexdigest()


def described(stays: list[Stay]) -> dict[str, str | int]:
    """The data set in a report."""
    outcomes = [stay.outcome for stay in stays if stay.outcome is not None]
    return {
        "name": PREFIX.rstrip(":"),
        "digest": digest(stays),
        "stays": len(stays),
        "judged": len(outcomes),
        "deaths": sum(outcomes),
        "skipped_lines": sum(stay.skipped for stay in stays),
    }


def _by_minute(sample: Sample) -> int:
    return sample.minute


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every .txt file in an archive, or in a folder and its archives; none hidden."""
    if path.is_file():
        yield from _archived(path)
        return
    for file in sorted(path.rglob("[!.]*")):
        if file.name.endswith((".tar.gz", ".tgz")):
            yield from _archived(file)
        elif file.suffix == ".txt" and file.is_file():
            yield file.name, file.read_bytes()


def _archived(path: Path) -> Iterator[tuple[str, bytes]]:
    # Outcomes files lie beside the archive rather than in it.
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                wanted = name.endswith(".txt") and not name.startswith(".")
                extracted = archive.extractfile(member) if wanted else None
                if extracted is not None:
                    yield name, extracted.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(f"{path} is not a readable .tar.gz archive: {error}") from error


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "an Outcomes file" if name.startswith("Outcomes") else "a stay's file"
        raise DatasetError(f"{kind} is not text in UTF-8") from error


def _outcomes(text: str) -> dict[str, Outcome]:
    reader = csv.DictReader(io.StringIO(text))
    column = "In-hospital_death"
    if not {"RecordID", column} <= set(reader.fieldnames or ()):
        raise DatasetError(f"an Outcomes file must have the columns RecordID and {column}")
    try:
        return {
            row["RecordID"].strip(): Outcome(
                _died(row[column]),
                _known(row.get("SAPS-I")),
                _known(row.get("SOFA")),
                _known(row.get("Survival")),
            )
            for row in reader
        }
    except (ValueError, AttributeError) as error:
        raise DatasetError(f"an Outcomes file holds an {column} that is neither 0 nor 1") from error


def _died(text: str) -> int:
    died = int(text)
    if died not in (0, 1):
        raise ValueError
    return died


def _known(text: str | None) -> int | None:
    """A severity score or a number of days; None for -1, which marks an unknown one, and anything else."""
    try:
        score = int(text or "")
    except ValueError:
        return None
    return score if score >= 0 else None


def _stay(name: str, text: str) -> Stay:
    record, samples, skipped = name, [], 0
    for line in text.splitlines()[1:]:
        fields = line.split(",")
        if len(fields) == 3 and fields[1] == "RecordID":
            record = fields[2].strip()
            continue
        sample = _sample(fields)
        if sample is None:
            skipped += 1
        elif not (fields[1] in DESCRIPTORS and sample.value == -1):
            samples.append(sample)
    return Stay(record, tuple(samples), None, skipped)


_TIME: Callable[[str], re.Match[str] | None] = re.compile(r"(\d{1,3}):([0-5]\d)").fullmatch


def _sample(fields: list[str]) -> Sample | None:
    time = _TIME(fields[0])
    if len(fields) != 3 or time is None or fields[1] not in _PLACE:
        return None
    try:
        value = float(fields[2])
    except ValueError:
        return None
    if not np.isfinite(value):
        return None
    channel, code, unit = _PLACE[fields[1]]
    return Sample(int(time[1]) * 60 + int(time[2]), channel, code, value, unit)


_PLACE = {name: (CHANNEL[feature], code, unit) for name, (code, unit, feature) in PARAMETERS.items()}

if any(code not in FEATURES[channel].loinc for channel, code, _ in _PLACE.values()):
    raise ImportError("a parameter's code is not among its feature's codes")
