#!/usr/bin/python3
"""A chat room behind Millrace: what one member says, all hear. Clients speak WebSocket.

Usage: chat.py BROKERS PARTITION PREFIX
For example: chat.py 127.0.0.1:9092 0 millrace.
A member's name is its target's: ws://HOST:PORT/NAME. A page for browsers: tests/peers/chat.html.
"""
import sys
from urllib.parse import unquote

from confluent_kafka import OFFSET_STORED, Consumer, Producer, TopicPartition

brokers, partition, prefix = sys.argv[1:]
consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{prefix}server-{partition}",
                     "auto.offset.reset": "earliest"})
consumer.assign([TopicPartition(prefix + "uplink", int(partition), OFFSET_STORED)])
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
members = {}  # by connection: the member's name, and the partition that leads back to it


def tell(line):
    for key, (_, reply) in members.items():
        producer.produce(prefix + "downlink", line, key, partition=reply,
                         headers={"websocket.opcode": "text"})


while True:
    producer.poll(0)
    record = consumer.poll(0.02)
    if record is None or record.error():
        continue
    key, headers = record.key(), {name: value.decode() for name, value in record.headers()}
    if headers.get("kind") == "open":
        name = unquote(headers["websocket.target"].lstrip("/")) or "somebody"
        members[key] = name, int(headers["reply"])
        tell(f"{name} has come")
    elif headers.get("kind") == "close":
        name, _ = members.pop(key, ("somebody", 0))
        tell(f"{name} has gone")
    elif key in members:
        tell(f"{members[key][0]}: {record.value().decode(errors='replace')}")
