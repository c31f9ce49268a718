#!/usr/bin/python3
"""A server behind Millrace in Python: sends every message back to the client it came from.

Usage: server.py BROKERS PARTITION PREFIX, for example server.py 127.0.0.1:9092 0 millrace.
Needs confluent-kafka (Debian: python3-confluent-kafka). The contract: docs/kafka-contract.md.
"""
import signal
import sys

from confluent_kafka import OFFSET_STORED, Consumer, Producer, TopicPartition

brokers, partition, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": f"{prefix}server-{partition}",  # the position is committed under this name
    "auto.offset.reset": "earliest",  # first start: read what has been waiting, too
    "enable.auto.offset.store": False,  # stored below, when the reply is safe
})
consumer.assign([TopicPartition(prefix + "uplink", partition, OFFSET_STORED)])
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})

try:
    while True:
        record = consumer.poll(0.01)
        producer.poll(0)  # serves `replied`
        if record is None:
            continue
        if record.error():
            print(f"server {partition}: {record.error()}", file=sys.stderr)
            continue
        headers = dict(record.headers())
        if headers["kind"] != b"message":  # the client came or went
            continue

        def replied(error, _, record=record):
            if error is None:
                consumer.store_offsets(record)

        producer.produce(prefix + "downlink", record.value(), record.key(),
                         partition=int(headers["reply"]), on_delivery=replied)
finally:
    producer.flush(10)
    consumer.close()
