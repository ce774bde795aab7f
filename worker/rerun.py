"""The path over records that are at hand: no consumer group, no Redis, messages handed back.

What it gives is what a worker publishes from the same records in the same places, byte for byte: backtests
foretell with it, audits verify with it. It runs `worker/pipeline.py` itself.
"""

from collections.abc import Sequence

from engines.engine import Engine
from engines.steps import SeriesModel
from worker import early_warning
from worker.batch import Batcher
from worker.change import Change
from worker.config import Settings
from worker.decode import Record
from worker.messages import Author
from worker.partition import Partition
from worker.pipeline import Pipeline, limits_of
from worker.policies import Policies
from worker.publish import Outgoing


class Rerun:
    """The path for one model, NEWS2 beside it, as a worker with these settings has it.

    Not for two tasks at a time. Close it when done; the engine stays the caller's.

    Args:
        engine: of the model.
        policies: in force.
        settings: limits, chunk size, topic names, whether scores are published.
    """

    def __init__(self, engine: Engine, policies: Policies, settings: Settings) -> None:
        voices = early_warning.voices(engine.config, engine.backend)
        self._published: list[Outgoing] = []
        self._chunk_records = settings.chunk_records
        self._batcher = Batcher(engine, lambda: None, settings.infer_timeout_s, settings.engine_patience_s)
        self.pipeline = Pipeline(
            SeriesModel(engine.config),
            policies,
            self._batcher.infer,
            self._publish,
            lambda partition: Author(partition.place, voices, settings.output_topics),
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
        """
        changes: list[Change] = []
        self._published = []
        live = next((i for i, r in enumerate(records) if r.offset >= partition.live_from), len(records))
        for stretch in (records[:live], records[live:]):
            for at in range(0, len(stretch), self._chunk_records):
                partition.position = stretch[at].offset
                changes.append(await self.pipeline.process(partition, stretch[at : at + self._chunk_records]))
        return changes, self._published

    async def close(self) -> None:
        """End the engine's thread."""
        await self._batcher.close()

    async def _publish(self, messages: Sequence[Outgoing]) -> None:
        self._published += messages
