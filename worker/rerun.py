"""The path over records that are at hand: no consumer group, no Redis, messages handed back.

What it gives is what a worker publishes from the same records in the same places, byte for byte: backtests
foretell with it, audits verify with it. It runs `worker/pipeline.py` itself.
"""

from collections.abc import Sequence

from engines.engine import Engine
from schemas.latch import Which
from worker.batch import Batcher
from worker.change import Change
from worker.config import Settings
from worker.decide import expire
from worker.decode import Record
from worker.errors import EngineDownError
from worker.findings import voice_of
from worker.intake import limits_of
from worker.messages import Author, Basis
from worker.partition import Partition
from worker.patient import FORGET_MS
from worker.pipeline import Pipeline
from worker.policies import Policies
from worker.publish import Outgoing
from worker.served import Alone, Served


class Rerun:
    """The path for one model, NEWS2 beside it, as a worker with these settings has it.

    Not for two tasks at a time. Close it when done; the engine stays the caller's.

    Args:
        engine: of the model.
        policies: in force.
        settings: limits, chunk size, topic names, whether scores are published.
    """

    def __init__(self, engine: Engine, policies: Policies, settings: Settings) -> None:
        self._published: list[Outgoing] = []
        self._chunk_records = settings.chunk_records
        self._topics = settings.output_topics
        # Nobody waits here: a slow engine is waited for, so that NEWS2 never answers alone.
        self._batcher = Batcher(engine, lambda: None, settings.infer_timeout_s, settings.infer_timeout_s)
        served = Served(engine.config, engine.backend, self._batcher.infer)
        self.voices = served.voices
        self.pipeline = Pipeline(
            Alone(served),
            policies,
            self._publish,
            settings.output_topics,
            limits_of(settings),
            publish_scores=settings.publish_scores,
        )

    async def process(
        self, partition: Partition, records: Sequence[Record]
    ) -> tuple[list[Change], list[Outgoing]]:
        """Take a partition's next records through the path.

        Records before the partition's `live_from` rebuild its memory and publish nothing.

        Returns:
            What each chunk did, and the messages in the order in which they were published.

        Raises:
            EngineDownError: the engine did not answer, so what follows would lack the model's part.
        """
        changes: list[Change] = []
        self._published = []
        live = next((i for i, r in enumerate(records) if r.offset >= partition.live_from), len(records))
        for stretch in (records[:live], records[live:]):
            for at in range(0, len(stretch), self._chunk_records):
                partition.position = stretch[at].offset
                changes.append(await self.pipeline.process(partition, stretch[at : at + self._chunk_records]))
        if partition.unanswered is not None:
            raise EngineDownError("the engine did not answer")
        return changes, self._published

    def expiry(self, partition: Partition, patient_id: str, which: Which) -> Outgoing | None:
        """The alert that ends a patient's open episode if nothing more is scored; None where none is open.

        A timer publishes it, or the patient when it starts anew: the same either way, for it rests on the
        latch and on the policy in force at the patient's last record.
        """
        patient = partition.patients.get(patient_id)
        trace = patient.latches[which].trace if patient is not None else None
        if patient is None or trace is None:
            return None
        policy = self.pipeline.policies.last(which, patient)
        _, step = expire(policy, patient.latches[which], trace.time + FORGET_MS + 1)
        if step is None:
            return None
        return self._author(partition).alert(which, step, patient_id, Basis(), voice_of(patient, which))

    async def expire_silent(self, partition: Partition, now_ms: int) -> list[Outgoing]:
        """What a worker's timer publishes of patients who are silent at stream time `now_ms`."""
        # Whom this process saw lately says nothing: all of the records are old.
        partition.seen_s.clear()
        partition.began_s = float("-inf")
        self._published = []
        await self.pipeline.expire_silent(partition, now_ms)
        return self._published

    async def close(self) -> None:
        """End the engine's thread."""
        await self._batcher.close()

    def _author(self, partition: Partition) -> Author:
        return Author(partition.place, self.voices, self._topics)

    async def _publish(self, messages: Sequence[Outgoing]) -> None:
        self._published += messages
