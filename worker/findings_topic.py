"""The findings topic -> the vitals topic, where the picture's patient lives.

The imaging role publishes what it made of a picture to the findings topic, and `carry.py` brings it among the
patient's records, in the partition that Kafka's own partitioner (murmur2) gives the key: producers of vital
signs must use the same. Its record keeps its timestamp, that of the imaging event's record: a replayed past
stays in the past. What is no finding is dead-lettered.
"""

import msgspec

from worker.carry import Load
from worker.config import Settings
from worker.decode import FINDING_TYPE, Record, Refusal, decode_finding
from worker.publish import Outgoing


def findings_load(settings: Settings) -> Load:
    """What is carried."""
    return Load("findings", settings.topic_findings, lambda record: _onward(record, settings))


def _onward(record: Record, settings: Settings) -> Outgoing | Refusal:
    event = decode_finding(record, settings.max_record_bytes)
    if isinstance(event, Refusal):
        return event
    # The picture of where the model looked is for eyes: the ward page reads it from the findings topic.
    value = msgspec.json.encode(msgspec.structs.replace(event.finding, activation_png=None))
    if len(value) > settings.max_record_bytes:
        return Refusal("too-large")
    headers = (("content-type", FINDING_TYPE),)
    return Outgoing(settings.topic_vitals, record.key, value, headers, timestamp_ms=record.timestamp)
