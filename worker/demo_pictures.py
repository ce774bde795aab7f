"""The pictures that `riskstream demo` sends beside its recording: one of each patient."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from schemas.imaging import ImagingEvent
from worker import imaging_source, simulate
from worker.demo_setup import Options
from worker.imaging_source import Sitting
from worker.recording import PATIENTS, SIMULATE, Recording

FILMED_AFTER = timedelta(hours=6)
"""After a patient's first record; simulated patients have times of their own."""


class Pictures(NamedTuple):
    """Imaging events to be sent beside a recording, in its time."""

    begins: datetime
    open: Callable[[], Iterator[ImagingEvent]]


def pictures_of(options: Options, recording: Recording) -> Pictures | None:
    """A picture of each patient, to be sent beside the recording; those of later are left out."""
    if options.images is None:
        return None
    choice = options.choice
    if options.source == SIMULATE:
        everyone = simulate.patients(choice.patients or PATIENTS, choice.seed, choice.mix)
        taken = imaging_source.sittings(everyone)
    else:
        first = {record.patient: record.time for record in reversed(list(recording.open()))}
        taken = [
            Sitting(time + FILMED_AFTER, patient, number, 0.0)
            for number, (patient, time) in enumerate(sorted(first.items()))
        ]
    taken = [sitting for sitting in taken if sitting.time <= recording.ends]
    found = imaging_source.of_patients(options.images, taken, imaging_source.Choice(seed=choice.seed))
    return Pictures(recording.begins, found.open)
