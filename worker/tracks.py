"""Tracks: each patient's risks and NEWS2 points over event time, made once by the path itself.

A policy is then tried on the tracks (`backtest.py`) without inferring again. Tracks depend on the records,
the models, NEWS2's scale and freshness and the limits of what is accepted; not on any policy's thresholds.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from schemas.news2_policy import News2Policy
from worker import early_warning, policies
from worker.backtest_source import Log, Source
from worker.change import Change
from worker.config import Settings
from worker.decode import Record
from worker.partition import Partition
from worker.patient import Patient
from worker.rerun import Rerun

NEVER_LIVE = 1 << 62
"""A partition that is live from here only builds up state: nothing is explained, written or published."""

ROOT = Path(__file__).parent.parent
"""Where the program's packages lie."""

Progress = Callable[[str, int, int], None]
"""Told (what, done, of)."""


class TracksError(RuntimeError):
    """The records cannot be made into tracks, or a tracks file cannot be used."""


class Rows(NamedTuple):
    """Records that changed a patient, in the order of the log; arrays of one length.

    offset: int64. time: int64, the patient's clock, ms since the epoch. risk: float64, NaN where the model
    read nothing new, or failed. low, held: float64, single, held_single: bool, what NEWS2's charts give
    (`early_warning.Charted`). anew: bool, the patient had been silent for so long that it starts anew here.
    live: bool, an alert would be published; before that only state is built up.
    """

    offset: NDArray[np.int64]
    time: NDArray[np.int64]
    risk: NDArray[np.float64]
    low: NDArray[np.float64]
    held: NDArray[np.float64]
    single: NDArray[np.bool_]
    held_single: NDArray[np.bool_]
    anew: NDArray[np.bool_]
    live: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tracks:
    """Rows by patient.

    patients: names; a patient of two partitions counts twice, as it does live.
    rows: of each.
    """

    patients: Sequence[str]
    rows: Sequence[Rows]


Unseen = Callable[[str], str]
"""Patient -> name of the model that has not seen it."""


async def make(
    source: Source,
    engines: Mapping[str, Engine],
    choose: Unseen,
    news2: News2Policy,
    settings: Settings,
    progress: Progress,
) -> Tracks:
    """Run a source through the path; the tracks of every patient with a record that counts.

    Args:
        source: the records.
        engines: by name.
        choose: which of them answers for a patient.
        news2: for scale and freshness.
        settings: limits, chunk size.
        progress: told of records.

    Raises:
        TracksError: the engine stopped answering.
    """
    reruns = {
        name: Rerun(engine, policies.shipped(settings, engine.config), settings)
        for name, engine in engines.items()
    }
    patients: list[str] = []
    rows: list[Rows] = []
    done = 0
    try:
        for log in source.logs:
            maker = _Maker(log, reruns, choose, news2)
            async for chunk in log.read():
                await maker.take(chunk)
                done += len(chunk)
                progress("making tracks", done, source.count)
            for name, found in sorted(maker.rows.items()):
                made = _arrays(found)
                if made.live.any():
                    patients.append(name)
                    rows.append(made)
    finally:
        for rerun in reruns.values():
            await rerun.close()
    return Tracks(patients, rows)


Row = tuple[int, int, float, float, float, bool, bool, bool, bool]


class _Maker:
    """Makes the rows of one partition; a patient's records go to one engine."""

    def __init__(self, log: Log, reruns: Mapping[str, Rerun], choose: Unseen, news2: News2Policy) -> None:
        self.rows: dict[str, list[Row]] = {}
        self._log = log
        self._reruns = reruns
        self._choose = choose
        self._news2 = news2
        self._partitions = {name: Partition(log.place, 0, NEVER_LIVE) for name in reruns}
        self._known: dict[str, Patient] = {}

    async def take(self, chunk: Sequence[Record]) -> None:
        """The partition's next records."""
        for name, records in self._divided(chunk).items():
            partition = self._partitions[name]
            changes, _ = await self._reruns[name].process(partition, records)
            if partition.unanswered is not None:
                raise TracksError(
                    "the engine does not answer, or not as its golden data ask; check the model"
                )
            at = 0
            for change in changes:
                self._add(records[at : at + len(change.fates)], change)
                at += len(change.fates)

    def _divided(self, chunk: Sequence[Record]) -> dict[str, list[Record]]:
        if len(self._reruns) == 1:
            return {next(iter(self._reruns)): list(chunk)}
        divided: dict[str, list[Record]] = {}
        for record in chunk:
            name = self._choose((record.key or b"").decode(errors="replace"))
            divided.setdefault(name, []).append(record)
        return divided

    def _add(self, records: Sequence[Record], change: Change) -> None:
        found: list[tuple[int, Patient, int, float, tuple[float, float, bool, bool]]] = []
        for plan, risks in ((change.plan, change.risks.tolist()), (change.beside, [])):
            if plan.scored:
                charted = zip(
                    *(array.tolist() for array in early_warning.charted(self._news2, plan)), strict=True
                )
                found += [
                    (scored.at, scored.patient, scored.time_ms, _risk(risks[i]) if risks else np.nan, points)
                    for i, (scored, points) in enumerate(zip(plan.scored, charted, strict=True))
                ]
        found.sort(key=lambda row: row[0])
        for at, patient, time_ms, risk, points in found:
            before = self._known.get(patient.id)
            self._known[patient.id] = patient
            anew = before is not None and before is not patient
            offset = records[at].offset
            self.rows.setdefault(patient.id, []).append(
                (offset, time_ms, risk, *points, anew, offset >= self._log.live_from)
            )


def _risk(risk: float) -> float:
    """As the path decides on it; NaN for one that the path refuses."""
    rounded = round(risk, 6)
    return rounded if 0.0 <= rounded <= 1.0 else float("nan")


def _arrays(rows: Sequence[Row]) -> Rows:
    kinds = (np.int64, np.int64, *3 * (np.float64,), *4 * (np.bool_,))
    columns = zip(*rows, strict=True)
    return Rows(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


def program(root: Path = ROOT) -> str:
    """Digest of the program's code: what another path makes of the same records are other tracks."""
    found = sha256()
    for package in ("engines", "schemas", "worker"):
        for file in sorted((root / package).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()


def identity(
    source: Source, models: Mapping[str, str], news2: News2Policy, settings: Settings, backends: Sequence[str]
) -> str:
    """Digest of all that tracks depend on.

    Args:
        models: digest by name, with who answers for whom where there are several.
        backends: that compute them.
    """
    depends = {
        "program": program(),
        "backends": list(backends),
        "source": source.identity,
        "models": dict(models),
        "news2": [news2.scale, news2.fresh_s],
        "limits": [settings.max_record_bytes, settings.past_tolerance_h, settings.future_tolerance_s],
    }
    return sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def write(tracks: Tracks, file: Path, identity: str) -> None:
    """Keep tracks in a file, an .npz; it holds patients' names and risks, so it is for its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    content = io.BytesIO()
    columns: dict[str, Any] = {
        field: np.concatenate([getattr(rows, field) for rows in tracks.rows]) for field in Rows._fields
    }
    np.savez_compressed(
        content,
        identity=np.array(identity),
        patients=np.array(json.dumps(list(tracks.patients))),
        lengths=np.array([len(rows.time) for rows in tracks.rows], dtype=np.int64),
        **columns,
    )
    file.touch(mode=0o600, exist_ok=True)
    file.chmod(0o600)  # Also one that was there before, and is for others.
    file.write_bytes(content.getvalue())


def load(file: Path, identity: str) -> Tracks | None:
    """Tracks that were kept; None where the file is of other records, models or settings.

    Raises:
        TracksError: it is no tracks file.
        OSError: it cannot be read.
    """
    content = io.BytesIO(file.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as archive:
            if str(archive["identity"]) != identity:
                return None
            ends = np.cumsum(archive["lengths"])[:-1]
            columns = [np.split(archive[field], ends) for field in Rows._fields]
            patients = json.loads(str(archive["patients"]))
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise TracksError(f"{file} is no tracks file; name another, or remove it") from error
    return Tracks(patients, [Rows(*arrays) for arrays in zip(*columns, strict=True)])
