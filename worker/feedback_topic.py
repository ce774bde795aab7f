"""The feedback topic -> the vitals topic, into the partition where the alert's patient lives.

Those who page people write what was said of an alert to the feedback topic, and `carry.py` brings it among
the patient's records. A record that is no feedback, or is about no alert of this input, is dead-lettered.
"""

import msgspec

from worker.carry import Load
from worker.cluster import Cluster
from worker.config import Settings
from worker.decode import FEEDBACK_TYPE, Record, Refusal, decode_feedback
from worker.feedback import place_of
from worker.publish import Outgoing


def feedback_load(settings: Settings, cluster: Cluster) -> Load:
    """What is carried; the cluster says which partitions alerts can come from."""
    return Load("feedback", settings.topic_feedback, lambda record: _onward(record, settings, cluster))


def _onward(record: Record, settings: Settings, cluster: Cluster) -> Outgoing | Refusal:
    event = decode_feedback(record, settings.max_record_bytes)
    if isinstance(event, Refusal):
        return event
    found = place_of(event.said.alert)
    if found is None or found[0][:2] != (cluster.id, settings.topic_vitals):
        return Refusal("unknown-alert", "$.alert.episode")
    partition = found[0].partition
    if partition >= cluster.partitions[settings.topic_vitals]:
        return Refusal("unknown-alert", "$.alert.episode")
    headers = (("content-type", FEEDBACK_TYPE),)
    # Only the fields that count: a record that filled a message of this topic would not fit there, with
    # its header, and a producer that is refused stops the worker.
    value = msgspec.json.encode(event.said)
    return Outgoing(settings.topic_vitals, record.key, value, headers, partition)
