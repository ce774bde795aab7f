"""The alerts that a worker publishes from the same records: ids and bytes, by running its own path."""

from collections.abc import AsyncIterator

from engines.engine import Engine
from worker import policies
from worker.backtest_source import Source
from worker.config import Settings
from worker.partition import Partition
from worker.policies import Policies
from worker.policy_source import PolicyFile, PolicyTopic
from worker.rerun import Rerun
from worker.tracks import Progress, TracksError


async def alerts(
    source: Source, engine: Engine, settings: Settings, progress: Progress
) -> AsyncIterator[bytes]:
    """Every alert, as published, by partition and in its order.

    Not among them are expiries that a timer publishes before a record brings them out: a patient's last open
    episode ends so, once the patient has been silent for long enough.

    Args:
        source: the records. engine: of the served model. settings: the worker's.
        progress: told of records.

    Raises:
        PolicyError: the file of policies cannot be used.
        RetryError: the policies topic cannot be read.
        TracksError: the engine stopped answering.
    """
    found = await _policies(source, engine, settings)
    rerun, done = Rerun(engine, found, settings), 0
    try:
        for log in source.logs:
            partition = Partition(log.place, 0, log.live_from)
            async for chunk in log.read():
                _, messages = await rerun.process(partition, chunk)
                if partition.unanswered is not None:
                    raise TracksError("the engine does not answer, or not as its golden data ask; check it")
                for message in messages:
                    if message.topic == settings.topic_alerts:
                        yield message.value
                done += len(chunk)
                progress("foretelling alerts", done, source.count)
    finally:
        await rerun.close()


async def _policies(source: Source, engine: Engine, settings: Settings) -> Policies:
    """In force for a worker with these settings, from the file and the topic."""
    found = policies.shipped(settings, engine.config)
    if settings.policies is not None:
        PolicyFile(settings.policies, found).load()
    if source.policy_partitions:
        topic = PolicyTopic(settings, source.policy_partitions, found)
        try:
            await topic.load()
        finally:
            await topic.close()
    return found
