#!/usr/bin/python3
"""A server behind Millrace for MQTT clients: publishes every message back under echo/TOPIC.

Usage: mqtt_echo.py BROKERS PARTITION PREFIX
For example: mqtt_echo.py 127.0.0.1:9092 0 millrace.
Needs confluent-kafka (Debian: python3-confluent-kafka). The contract: docs/kafka-contract.md.
"""
import signal
import sys

from confluent_kafka import OFFSET_STORED, Consumer, KafkaException, Producer, TopicPartition

# What of a message stands in its echo too, beside the topic. A QoS that is not named is 0.
SAME = ("mqtt.qos", "mqtt.content_type", "mqtt.correlation", "mqtt.payload_format")

brokers, partition, prefix = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": f"{prefix}server-{partition}",
    "auto.offset.reset": "earliest",
    "enable.auto.offset.store": False,  # stored below, when the reply is safe
    "auto.commit.interval.ms": 1000,
})
consumer.assign([TopicPartition(prefix + "uplink", int(partition), OFFSET_STORED)])
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True,
                     "message.timeout.ms": 0})  # a broker that is away is waited for
undone = {}  # offsets that were read and are not answered, in their order


def done(error, offset):
    if error:  # what is not committed is read again by whoever is started next
        sys.exit(f"mqtt_echo: a reply was not delivered: {error}")
    undone.pop(offset, None)
    position = next(iter(undone), read)
    consumer.store_offsets(offsets=[TopicPartition(prefix + "uplink", int(partition), position)])


try:
    while True:
        producer.poll(0)  # serves `done`
        record = consumer.poll(0.01)
        if record is None or record.error():
            continue
        offset = record.offset()
        undone[offset], read = True, offset + 1
        try:
            headers = dict(record.headers() or [])  # fails if a name is not UTF-8
            topic, partition_of_reply = headers["mqtt.topic"], int(headers["reply"])
        except (KeyError, TypeError, ValueError, SystemError):
            done(None, offset)  # a client has come or gone; or it is no message
            continue
        reply = {name: value for name, value in headers.items()
                 if name in SAME or name.startswith("mqtt.user.")}
        reply["mqtt.topic"] = b"echo/" + (topic or b"")
        try:
            producer.produce(prefix + "downlink", record.value(), record.key(), headers=reply,
                             partition=partition_of_reply,
                             on_delivery=lambda error, _, offset=offset: done(error, offset))
        except (KafkaException, OverflowError) as error:  # no such partition, for example
            print(f"mqtt_echo: record {offset}: {error!r}", file=sys.stderr)
            done(None, offset)
finally:
    producer.flush(10)
    consumer.close()
