#!/usr/bin/python3
"""A server behind Millrace for MQTT clients: publishes every message back under echo/TOPIC.

Usage: mqtt_echo.py BROKERS PARTITION PREFIX
For example: mqtt_echo.py 127.0.0.1:9092 0 millrace.
Needs confluent-kafka (Debian: python3-confluent-kafka). The contract: docs/kafka-contract.md.
"""
import signal
import sys

from confluent_kafka import OFFSET_STORED, Consumer, Producer, TopicPartition

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
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})


def done(error, record):
    if error is None:
        consumer.store_offsets(record)


try:
    while True:
        producer.poll(0)  # serves `done`
        record = consumer.poll(0.01)
        if record is None or record.error():
            continue
        headers = dict(record.headers())
        if "mqtt.topic" not in headers:  # a client has come or gone
            producer.flush()
            done(None, record)
            continue
        reply = {name: value for name, value in headers.items()
                 if name in SAME or name.startswith("mqtt.user.")}
        reply["mqtt.topic"] = b"echo/" + headers["mqtt.topic"]
        producer.produce(prefix + "downlink", record.value(), record.key(), headers=reply,
                         partition=int(headers["reply"]),
                         on_delivery=lambda error, _, record=record: done(error, record))
finally:
    producer.flush(10)
    consumer.close()
