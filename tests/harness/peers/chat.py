#!/usr/bin/python3
"""A chat room behind Millrace: what one member says, all hear. Clients speak WebSocket.

Usage: chat.py BROKERS PARTITION PREFIX
For example: chat.py 127.0.0.1:9092 0 millrace.
A member's name is its target's: ws://HOST:PORT/NAME. A page for browsers: tests/harness/peers/chat.html.
"""
import sys
from urllib.parse import unquote

from confluent_kafka import OFFSET_STORED, Consumer, KafkaException, Producer, TopicPartition

brokers, partition, prefix = sys.argv[1:]
consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{prefix}server-{partition}",
                     "auto.offset.reset": "earliest"})
consumer.assign([TopicPartition(prefix + "uplink", int(partition), OFFSET_STORED)])
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
members = {}  # by connection: the member's name, and the partition that leads back to it


def tell(line):
    for key, (_, reply) in members.items():
        try:
            producer.produce(prefix + "downlink", line, key, partition=reply,
                             headers={"websocket.opcode": "text"})
        except (BufferError, KafkaException, OverflowError) as error:
            print(f"chat: {error!r}", file=sys.stderr)


while True:
    producer.poll(0)
    record = consumer.poll(0.02)
    if record is None or record.error():
        continue
    try:
        key, headers = record.key(), dict(record.headers() or [])  # fails if a name is not UTF-8
        # A client may write anything, `Origin` for example.
        headers = {name: (value or b"").decode(errors="replace") for name, value in headers.items()}
    except (ValueError, SystemError) as error:
        print(f"chat: record {record.offset()}: {error!r}", file=sys.stderr)
        continue
    if headers.get("kind") == "open":
        if not headers.get("reply", "").isdecimal():
            continue
        name = unquote(headers.get("websocket.target", "").lstrip("/")) or "somebody"
        members[key] = name, int(headers["reply"])
        tell(f"{name} has come")
    elif headers.get("kind") == "close":
        name, _ = members.pop(key, ("somebody", 0))
        tell(f"{name} has gone")
    elif key in members:
        tell(f"{members[key][0]}: {(record.value() or b'').decode(errors='replace')}")
