#!/usr/bin/python3
"""A server behind Millrace in Python: sends every message back to the client it came from.

Usage: server.py BROKERS PARTITION PREFIX [--rate N]
       server.py BROKERS lease PREFIX --id ID --service NAME --address ADDRESS [--rate N]
For example: server.py 127.0.0.1:9092 0 millrace.
             server.py 127.0.0.1:9092 lease millrace. --id chat-7 --service chat --address 203.0.113.17
With `lease` it registers, and drains on SIGTERM; --rate is the most messages a second that it reads.
Needs confluent-kafka (Debian: python3-confluent-kafka). The contract: docs/kafka-contract.md.
"""
import argparse
import json
import signal
import sys
import time
import uuid

from confluent_kafka import OFFSET_STORED, Consumer, Producer, TopicPartition


class Lease:
    """A registration, renewed, and the coordinator's answers to it."""

    def __init__(self, brokers, prefix, id, service, address):
        self.topic, self.id, self.lease, self.term = prefix + "registry", id, None, 0
        self.value = {"version": 1, "service": service, "address": address,
                      "instance": str(uuid.uuid4()), "state": "live"}  # instance: this process
        self.producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
        self.registry = Consumer({"bootstrap.servers": brokers, "enable.auto.commit": False,
                                  "group.id": f"{prefix}registry-{id}"})
        # The answer comes behind the registration, so nothing before it need be read.
        self.register(lambda _, sent: self.registry.assign(
            [TopicPartition(self.topic, 0, sent.offset())]))
        self.producer.flush()

    def register(self, on_delivery=None):
        self.producer.produce(self.topic, json.dumps(self.value), f"server/{self.id}", partition=0,
                              on_delivery=on_delivery)
        lease_ms = self.lease["lease_ms"] if self.lease else 3000
        self.renewal = time.monotonic() + lease_ms / 3000  # a third of it

    def keep(self, wait=0.0):
        """Renews in time and reads what has come; ends the process when the lease has ended."""
        if time.monotonic() >= self.renewal:
            self.register()
        self.producer.poll(0)
        record = self.registry.poll(wait)
        if record is None or record.error() or record.value() is None:
            return
        mine = self.value["instance"]
        if record.key() == b"coordinator":
            self.term = record.offset()  # what a former coordinator writes does not count any more
        elif record.key() == f"refusal/{self.id}".encode():
            answer = json.loads(record.value())
            if answer["instance"] == mine:
                sys.exit(f"server {self.id}: refused: {answer['reason']}")
        elif record.key() == f"lease/{self.id}".encode():
            answer = json.loads(record.value())
            if answer["term"] < self.term:
                return
            self.term = answer["term"]
            if answer["instance"] == mine and answer["state"] != "gone":
                self.lease = answer
            elif answer["instance"] == mine:
                sys.exit(0 if self.value["state"] == "draining" else f"server {self.id}: gone")
            elif self.lease:
                sys.exit(f"server {self.id}: superseded by {answer['instance']}")

    def drain(self, *_):
        self.value["state"], self.renewal = "draining", 0


parser = argparse.ArgumentParser()
for name in ("brokers", "partition", "prefix"):
    parser.add_argument(name)
for name in ("--id", "--service", "--address"):
    parser.add_argument(name)
parser.add_argument("--rate", type=float)
args = parser.parse_args()

lease = None
if args.partition == "lease":
    lease = Lease(args.brokers, args.prefix, args.id, args.service, args.address)
    while lease.lease is None:
        lease.keep(0.1)
    print(f"lease: partition {lease.lease['partition']}, epoch {lease.lease['epoch']}", flush=True)
signal.signal(signal.SIGTERM, lease.drain if lease else lambda *_: sys.exit(0))

partition = lease.lease["partition"] if lease else int(args.partition)
consumer = Consumer({
    "bootstrap.servers": args.brokers,
    "group.id": f"{args.prefix}server-{partition}",  # the position is committed under this name
    "auto.offset.reset": "earliest",  # first start: read what has been waiting, too
    "enable.auto.offset.store": False,  # stored below, when the reply is safe
    "auto.commit.interval.ms": 1000,
})
consumer.assign([TopicPartition(args.prefix + "uplink", partition, OFFSET_STORED)])
producer = Producer({"bootstrap.servers": args.brokers, "enable.idempotence": True})
next_read = 0.0


def done(error, record):
    if error is None:
        consumer.store_offsets(record)


try:
    while True:
        if lease:
            lease.keep()
        producer.poll(0)  # serves `done`
        if time.monotonic() < next_read:
            time.sleep(0.005)
            continue
        record = consumer.poll(0.01)
        if record is None:
            continue
        if record.error():
            print(f"server {partition}: {record.error()}", file=sys.stderr)
            continue
        headers = dict(record.headers() or [])
        mine = not lease or headers.get("server", args.id.encode()) == args.id.encode()
        if "kind" in headers or not mine:
            # A client came or went; or it was meant for who had the partition before.
            producer.flush()
            done(None, record)
            continue
        if args.rate:
            next_read = max(next_read, time.monotonic() - 0.1) + 1 / args.rate
        producer.produce(args.prefix + "downlink", record.value(), record.key(),
                         partition=int(headers["reply"]),
                         on_delivery=lambda error, _, record=record: done(error, record))
finally:
    producer.flush(10)
    consumer.close()
