"""What `publish` returns from is on the broker, in order, byte for byte."""

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from engines.engine import Engine
from schemas.messages import Alert
from tests.worker.records import LocalPath, worsening
from worker import config, embedded
from worker.cluster import describe
from worker.errors import PublishError
from worker.publish import Publisher, cloud_event


async def test_published_is_confirmed_in_order_and_where_it_belongs(engine: Engine) -> None:
    path = LocalPath(engine)
    await path.process(worsening("p", 0, 20))
    alerts = path.outbox.of("risk-alerts")
    assert len(alerts) >= 2
    with embedded.tansu() as broker:
        settings = config.load(broker=broker.address, kafka_idempotence=False, partitions=4)
        await describe(settings, create=True)
        publisher = Publisher(settings)
        await publisher.start()
        await publisher.publish(alerts)
        await publisher.stop()
        consumer = AIOKafkaConsumer(**settings.kafka_client(), auto_offset_reset="earliest")
        await consumer.start()
        partition = TopicPartition("risk-alerts", 3)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        found = [await consumer.getone() for _ in alerts]
        await consumer.stop()

    assert [(r.key, r.value) for r in found] == [(m.key, m.value) for m in alerts]
    headers = dict(found[0].headers)
    assert headers["ce_type"] == b"riskstream.alert.raised"
    assert headers["ce_id"].decode() == msgspec.json.decode(found[0].value, type=Alert).id


async def test_no_broker_is_a_publish_error() -> None:
    settings = config.load(
        broker=f"127.0.0.1:{embedded.free_port()}", kafka_idempotence=False, request_timeout_s=10
    )
    publisher = Publisher(settings)
    with pytest.raises(PublishError, match="no Kafka producer"):
        await publisher.start()
    await publisher.stop()


def test_cloud_event_headers() -> None:
    assert dict(cloud_event("alert.raised", "1", "/riskstream/c/t/0")) == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_type": b"riskstream.alert.raised",
        "ce_id": b"1",
        "ce_source": b"/riskstream/c/t/0",
    }
