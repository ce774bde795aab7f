"""Recurrent states for a version that is about to serve, computed while the one before still does.

Without them the first record of each patient after a swap would wait for its window to be encoded. Patients
that change meanwhile are left out: theirs are computed at their next record, as after a restart.
"""

from collections.abc import Iterable

import structlog

from worker.errors import EngineDownError, EngineHungError
from worker.infer import encode
from worker.partition import Partition, Prepared
from worker.served import Served

AT_ONCE = 128
"""Patients encoded together: engine calls between which others have their turn."""

log = structlog.get_logger("riskstream.preparing")


async def prepare(partitions: Iterable[Partition], served: Served) -> None:
    """Compute each patient's state under what is about to serve; the partitions take them when it does."""
    if not served.model.stateful:
        return
    for partition in partitions:
        if partition.model in ("", served.fingerprint) or partition.replaying:
            continue
        partition.prepared = Prepared(served.fingerprint, {})
        known = [patient for patient in partition.patients.values() if patient.hidden is not None]
        try:
            for at in range(0, len(known), AT_ONCE):
                some = known[at : at + AT_ONCE]
                before = [patient.hidden for patient in some]
                states = await encode(some, served.model, served.run)
                for patient, old, new in zip(some, before, states, strict=True):
                    if old is not None:
                        partition.prepared.states[patient.id] = old, new
        except (EngineDownError, EngineHungError) as error:
            log.warning("states are not prepared; the next records compute them", why=error.reason)
            return
