"""What `riskstream send imaging` sends: events of the pictures in a folder, a file or a data set.

A small picture travels in its event; a larger one is named by its path, which readers must be allowed to
open.
Of a DICOM file the event takes patient, time and words; for other pictures the user, or `events.csv` in the
folder, says whose they are. The same picture of the same patient gives the same event id.
"""

import csv
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from engines import dicom_header, medmnist
from engines.dicom_start import HEAD, is_dicom
from engines.engine import F32
from engines.errors import DatasetError, ExtraError, ImageError
from engines.images import to_png
from engines.limits import MAX_BYTES
from schemas.imaging import MAX_INLINE_BYTES, FileImage, ImagingEvent, InlineImage
from schemas.model_config import ImageInput
from worker import simulate
from worker.films import film
from worker.pathways import MIX
from worker.recording import PATIENTS, SIMULATE, SourceError

DICOMWEB = "dicomweb:"

MANIFEST = "events.csv"
"""Says whose a folder's pictures are: columns file, patient, time; modality, body_part, view if known."""

DIRECTORY = "DICOMDIR"
"""Lists the files of a DICOM medium, in DICOM's own format, and is no picture."""

INLINE_BYTES = 600 << 10
"""A larger picture goes by reference unless stated: with base64 and the rest it would pass Kafka's 1 MiB."""

_EVENTS = uuid.UUID("0f1c1f0e-61a5-5a0b-9d0c-5b4f53a2be11")

Carry = Literal["auto", "inline", "reference"]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Events to send.

    open: a fresh iterator over them. count: how many.
    skipped: files that are no pictures.
    left_out: why pictures of a folder cannot be sent; grows while events are read.
    """

    open: Callable[[], Iterator[ImagingEvent]]
    count: int
    skipped: int = 0
    left_out: list[str] = field(default_factory=list)


class Choice(NamedTuple):
    """How a source is read.

    patient: whose all pictures are. time: when all were taken. zone: of times that state none.
    carry: whether pictures travel in their events. limit: how many, the first ones.
    """

    patient: str | None = None
    time: datetime | None = None
    zone: tzinfo = UTC
    carry: Carry = "auto"
    limit: int | None = None
    seed: int = 1


class _Told(NamedTuple):
    """A row of `events.csv`."""

    patient: str
    time: datetime
    modality: str
    body_part: str
    view: str


def read(source: str, choice: Choice) -> Pictures:
    """The events of a source that this machine holds: `simulate`, `medmnist:FILE`, a folder or a file.

    Raises:
        SourceError: it cannot be read, or nobody says whose a picture is.
    """
    if source == SIMULATE:
        return simulated(choice)
    if source.startswith(medmnist.PREFIX):
        return _data_set(Path(source.removeprefix(medmnist.PREFIX)), choice)
    path = Path(source)
    if path.is_dir():
        return _folder(path, choice)
    if not path.is_file():
        raise SourceError(f"no such file or folder: {path}; or write {DICOMWEB}URL, {medmnist.PREFIX}FILE")
    if not _is_picture(path):
        raise SourceError(f"{path} is neither PNG, JPEG nor DICOM")
    return Pictures(lambda: iter([_of_file(path, choice, None)]), 1)


class Sitting(NamedTuple):
    """When a picture is taken of a patient; `level` is how white the lungs are, from 0 to 1."""

    time: datetime
    patient: str
    number: int
    level: float


def simulated(choice: Choice) -> Pictures:
    """A chest film of each simulated patient, at the height of the illness."""
    return of_patients(
        SIMULATE, sittings(simulate.patients(choice.limit or PATIENTS, choice.seed, MIX)), choice
    )


def sittings(patients: Iterable[simulate.Patient]) -> list[Sitting]:
    """When simulated patients have their chest films taken."""
    filmed = [(patient, simulate.filmed(patient)) for patient in patients]
    return [Sitting(time, patient.id, patient.number, level) for patient, (time, level) in filmed]


def of_patients(images: str, taken: Sequence[Sitting], choice: Choice) -> Pictures:
    """A picture for each sitting, in the order of time: `simulate` draws films, `medmnist:FILE` has pictures.

    Raises:
        SourceError: the file cannot be read.
    """
    picture: Callable[[Sitting], F32]
    if images == SIMULATE:
        picture, words = partial(_film, choice.seed), ("DX", "CHEST", "PA")
    elif images.startswith(medmnist.PREFIX):
        picture, words = _of_data_set(Path(images.removeprefix(medmnist.PREFIX))), ("", "", "")
    else:
        raise SourceError(f"--images is {SIMULATE} or {medmnist.PREFIX}FILE, not {images}")

    def events() -> Iterator[ImagingEvent]:
        for sitting in sorted(taken):
            png = to_png(picture(sitting))
            yield _event(sitting.patient, sitting.time, InlineImage(png), _digest(png), len(png), words)

    return Pictures(events, len(taken))


def _film(seed: int, sitting: Sitting) -> F32:
    return film(seed, sitting.number, sitting.level)


def _of_data_set(path: Path) -> Callable[[Sitting], F32]:
    """Gives a sitting the data set's picture of its number; where there are fewer they come again."""
    try:
        images = medmnist.read(path, labelled=False)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    raw = ImageInput(images.height, images.width)
    return lambda sitting: images.read(int(images.places[sitting.number % len(images)]), raw)


def _data_set(path: Path, choice: Choice) -> Pictures:
    """Pictures of a MedMNIST file, each a patient's of its own; an hour apart unless one time is given."""
    try:
        count = len(medmnist.read(path, labelled=False))
    except DatasetError as error:
        raise SourceError(str(error)) from error
    begins, step = (choice.time, timedelta()) if choice.time else (simulate.START, timedelta(hours=1))
    taken = [
        Sitting(begins + number * step, choice.patient or f"image-{number}", number, 0.0)
        for number in range(min(count, choice.limit or count))
    ]
    return of_patients(f"{medmnist.PREFIX}{path}", taken, choice)


def _folder(folder: Path, choice: Choice) -> Pictures:
    told = _manifest(folder / MANIFEST, choice.zone) if (folder / MANIFEST).is_file() else {}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    pictures = [path for path in files if _is_picture(path)]
    if not pictures:
        raise SourceError(f"{folder} holds no PNG, JPEG or DICOM file")
    chosen = pictures[: choice.limit]
    named = {folder / name for name in told}.difference(pictures)
    left_out = []
    for path in sorted(named):
        why = "no PNG, JPEG or DICOM file" if path in files else "not there"
        left_out.append(f"{path}: {MANIFEST} names it, and it is {why}")

    def events() -> Iterator[ImagingEvent]:
        for path in chosen:
            try:
                event = _of_file(path, choice, told.get(path.relative_to(folder).as_posix()))
            except SourceError as error:  # one file must not keep the others back
                left_out.append(str(error))
            else:
                yield event

    return Pictures(events, len(chosen), len(set(files).difference(pictures, named)), left_out)


def _of_file(path: Path, choice: Choice, told: _Told | None) -> ImagingEvent:
    content = _content(path)
    header = None
    if is_dicom(content, len(content)):
        try:
            header = dicom_header.read_header(content, choice.zone)
        except (ImageError, ExtraError) as error:
            raise SourceError(f"{path}: {error}") from None
    patient = choice.patient or (told.patient if told else "") or (header.patient if header else "")
    if not patient:
        raise SourceError(
            f"{path}: whose picture is it? Give --patient, or {MANIFEST} in the folder with the columns "
            "file, patient, time"
        )
    time = choice.time or (told.time if told else None) or (header.time if header else None)
    if time is None:
        raise SourceError(f"{path}: when was it taken? Give --time, or {MANIFEST} in the folder")
    words = tuple(
        (told and getattr(told, name)) or (header and getattr(header, name)) or ""
        for name in ("modality", "body_part", "view")
    )
    if choice.carry == "inline" or (choice.carry == "auto" and len(content) <= INLINE_BYTES):
        if len(content) > MAX_INLINE_BYTES:
            raise SourceError(f"{path} has {len(content):,} bytes; an event carries {MAX_INLINE_BYTES:,}")
        return _event(patient, time, InlineImage(content), _digest(content), len(content), words)
    return _event(patient, time, FileImage(_name(path)), _digest(content), len(content), words)


def _name(path: Path) -> str:
    name = str(path.resolve())
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{name!r}: its name is not UTF-8, as a reference must be; rename it") from None
    return name


def _manifest(path: Path, zone: tzinfo) -> dict[str, _Told]:
    """Rows of `events.csv` by file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read: {type(error).__name__}") from None
    found = {}
    for number, row in enumerate(rows, start=2):
        file, patient = (row.get("file") or "").strip(), (row.get("patient") or "").strip()
        if not file or not patient:
            raise SourceError(f"{path}, row {number}: the columns file and patient must be filled")
        time = time_of(row.get("time") or "", zone)
        if time is None:
            raise SourceError(f"{path}, row {number}: time must be such as 2026-01-31T08:30:00Z")
        words = ((row.get(name) or "").strip() for name in ("modality", "body_part", "view"))
        found[Path(file).as_posix()] = _Told(patient, time, *words)
    return found


def time_of(text: str, zone: tzinfo) -> datetime | None:
    """An ISO 8601 time, in `zone` where it states none; None for none."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=zone)


def _is_picture(path: Path) -> bool:
    """Whether it begins as one; a file that cannot be read may be one, and whoever reads it says why not."""
    if path.name.upper() == DIRECTORY:
        return False
    try:
        with path.open("rb") as file:
            head, size = file.read(HEAD), os.fstat(file.fileno()).st_size
    except OSError:
        return True
    return head[:4] == b"\x89PNG" or head[:2] == b"\xff\xd8" or is_dicom(head, size)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path} is larger than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _event(
    patient: str,
    time: datetime,
    image: InlineImage | FileImage,
    digest: str,
    size: int,
    words: tuple[str, ...],
) -> ImagingEvent:
    event_id = str(uuid.uuid5(_EVENTS, f"{patient}/{digest}"))
    try:
        return msgspec.convert(
            msgspec.structs.asdict(ImagingEvent(event_id, patient, time, image, digest, size, *words)),
            ImagingEvent,
        )
    except msgspec.ValidationError:
        raise SourceError("a patient's id or a word is longer than events may hold") from None
