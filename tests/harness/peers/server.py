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

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

BATCH = 1000  # records that are answered before their offset is committed
RECOMMIT = 30  # seconds: brokers forget an offset that nobody commits for offsets.retention.minutes
PATIENCE = 60  # seconds: a producer that was told that all brokers are down may never ask them again
# What the log does not have any more: deleted by retention, or lost with a broker.
OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, -139}  # log truncation


def parse(value):
    """A JSON object; what is none tells nothing."""
    try:
        answer = json.loads(value)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


class Lease:
    """A registration, renewed, and the coordinator's answers to it."""

    def __init__(self, brokers, prefix, id, service, address):
        self.topic, self.id, self.lease, self.term = prefix + "registry", id, None, 0
        self.value = {"version": 1, "service": service, "address": address,
                      "instance": str(uuid.uuid4()), "state": "live"}  # instance: this process
        self.brokers, self.producer = brokers, None
        self.registry = Consumer({"bootstrap.servers": brokers, "enable.auto.commit": False,
                                  "group.id": f"{prefix}registry-{id}"})
        # The answer comes behind the registration, so nothing before it need be read.
        self.register(lambda error, sent: error or self.registry.assign(
            [TopicPartition(self.topic, 0, sent.offset())]))
        self.producer.flush()

    def register(self, on_delivery=None):
        if self.producer is None:
            self.producer = Producer({"bootstrap.servers": self.brokers, "enable.idempotence": True,
                                      "error_cb": lambda _: None})
        try:
            self.producer.produce(self.topic, json.dumps(self.value), f"server/{self.id}",
                                  partition=0, on_delivery=on_delivery)
        except (BufferError, KafkaException) as error:
            print(f"server {self.id}: {error}; with a new producer", file=sys.stderr)
            self.producer = None  # the next turn makes one
            return
        lease_ms = self.lease["lease_ms"] if self.lease else 3000
        self.renewal = time.monotonic() + lease_ms / 3000  # a third of it

    def keep(self, wait=0.0):
        """Renews in time and reads what has come; ends the process when the lease has ended."""
        if time.monotonic() >= self.renewal:
            self.register()
        if self.producer:
            self.producer.poll(0)
        record = self.registry.poll(wait)
        if record is None or record.error() or record.value() is None:
            return
        mine = self.value["instance"]
        if record.key() == b"coordinator":
            self.term = record.offset()  # what a former coordinator writes does not count any more
        elif record.key() == f"refusal/{self.id}".encode():
            answer = parse(record.value())
            if answer.get("instance") == mine:
                sys.exit(f"server {self.id}: refused: {answer.get('reason')}")
        elif record.key() == f"lease/{self.id}".encode():
            answer = parse(record.value())
            if answer.get("term", -1) < self.term:
                return
            self.term = answer["term"]
            if answer.get("instance") == mine and answer.get("state") != "gone":
                self.lease = answer
            elif answer.get("instance") == mine:
                sys.exit(0 if self.value["state"] == "draining" else f"server {self.id}: gone")
            elif self.lease:
                sys.exit(f"server {self.id}: superseded by {answer.get('instance')}")

    def drain(self, *_):
        self.value["state"], self.renewal = "draining", 0


class Reader:
    """A partition of the uplink, and how far it is answered."""

    def __init__(self, brokers, prefix, partition):
        self.place = TopicPartition(prefix + "uplink", partition)
        self.consumer = Consumer({
            "bootstrap.servers": brokers,
            "group.id": f"{prefix}server-{partition}",  # the position is committed under this name
            "enable.auto.commit": False,  # committed below, when the replies are safe
            "auto.offset.reset": "error",  # decided below
        })
        self.last_time = 0  # of the last record, by its own time
        self.go_on(self.ask(self.known))
        self.commit()  # so that the group has an offset, whoever asks for it

    def known(self):
        """The offset that is committed; below 0 if none is."""
        known = self.consumer.committed([self.place], timeout=10)[0]
        if known.error:
            raise KafkaException(known.error)
        return known.offset

    def ask(self, question):
        """Asks the brokers, for as long as they are away."""
        while True:
            try:
                return question()
            except KafkaException as error:
                print(f"server {self.place.partition}: {error}; trying on", file=sys.stderr)
                time.sleep(1)

    def go_on(self, offset):
        """Reads on there; without an offset, what has been waiting, too."""
        first, end = self.ask(lambda: self.consumer.get_watermark_offsets(self.place, timeout=10))
        self.read = first if offset < 0 else min(max(offset, first), end)
        if offset > end and self.last_time:  # another log than before: what is new by its time
            at = TopicPartition(self.place.topic, self.place.partition, self.last_time)
            at = self.ask(lambda: self.consumer.offsets_for_times([at], timeout=10))[0]
            self.read = at.offset if at.offset >= 0 else end
        if offset >= 0 and self.read != offset:
            print(f"server {self.place.partition}: offset {offset} is not there (the log has {first} "
                  f"to {end}): going on at {self.read}", file=sys.stderr)
        self.consumer.assign([TopicPartition(self.place.topic, self.place.partition, self.read)])

    def next(self):
        record = self.consumer.poll(0.01)
        if record is None or record.error() is None:
            return record
        print(f"server {self.place.partition}: {record.error()}", file=sys.stderr)
        if record.error().code() in OUT_OF_RANGE:
            self.go_on(self.read)
        return None

    def commit(self, asynchronous=True):
        """All that was read is answered."""
        self.done, self.committed = self.read, time.monotonic()
        at = TopicPartition(self.place.topic, self.place.partition, self.done)
        self.consumer.commit(offsets=[at], asynchronous=asynchronous)


class Replies:
    """A producer, and whether all that was given to it has arrived."""

    def __init__(self, brokers, topic):
        self.topic, self.partitions = topic, 0
        self.waiting, self.failed, self.told = 0, None, False
        self.since = time.monotonic()  # nothing waits, or something has arrived
        self.producer = Producer({
            "bootstrap.servers": brokers, "enable.idempotence": True,
            "message.timeout.ms": 0,  # a broker that is away is waited for
            "message.max.bytes": 1000000000,  # the topic knows how much is too much
            "error_cb": self.on_error})

    def on_error(self, error):
        # A quiet producer is told so as well, when a broker closes connections that idle.
        self.told |= error.code() == KafkaError._ALL_BROKERS_DOWN

    def has(self, partition):
        """False: there is no such partition in the topic, if that is there at all."""
        if partition >= self.partitions:
            topic = self.producer.list_topics(self.topic, timeout=10).topics.get(self.topic)
            self.partitions = len(topic.partitions) if topic and topic.error is None else 0
        return 0 <= partition < self.partitions or not self.partitions

    def send(self, value, key, partition):
        self.since = self.since if self.waiting else time.monotonic()
        self.told &= self.waiting > 0
        try:
            self.producer.produce(self.topic, value, key, partition=partition,
                                  on_delivery=self.on_delivery)
            self.waiting += 1
        except KafkaException as error:
            self.judge(error.args[0])

    def on_delivery(self, error, _):
        self.waiting, self.since = self.waiting - 1, time.monotonic()
        self.told &= error is not None
        if error:
            self.judge(error)

    def judge(self, error):
        print(f"server: a reply was not delivered: {error}", file=sys.stderr)
        if error.code() != KafkaError.MSG_SIZE_TOO_LARGE:  # which no broker will ever take
            self.failed = error

    def is_lost(self):
        """No reply will come through this producer any more."""
        silent = self.waiting and self.told and time.monotonic() - self.since > PATIENCE
        return self.failed is not None or silent


def reply_to(record, server):
    """The partition of the downlink, if the record is a message for this server."""
    try:
        headers = dict(record.headers() or [])  # fails if a name is not UTF-8
        if "kind" in headers or server and headers.get("server", server) != server:
            return None  # a client came or went; or it was meant for who had the partition before
        return int(headers["reply"])
    except (KeyError, TypeError, ValueError, SystemError) as error:
        print(f"server: record {record.offset()} is no message: {error!r}", file=sys.stderr)
        return None


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

reader = Reader(args.brokers, args.prefix, lease.lease["partition"] if lease else int(args.partition))
replies = Replies(args.brokers, args.prefix + "downlink")
server = args.id.encode() if lease else None
next_read = 0.0

try:
    while True:
        if lease:
            lease.keep()
        replies.producer.poll(0)  # serves `on_delivery`
        if replies.is_lost():
            # What is not committed is read and answered again.
            replies.producer.purge()
            replies = Replies(args.brokers, args.prefix + "downlink")
            time.sleep(1)
            reader.go_on(reader.done)
        record, full = None, reader.read - reader.done >= BATCH
        if time.monotonic() < next_read:
            time.sleep(0.005)
        elif not full:
            record = reader.next()
        if record is None:
            if replies.waiting:
                replies.producer.poll(0.01)
            elif reader.done != reader.read or time.monotonic() - reader.committed > RECOMMIT:
                reader.commit()
            continue
        partition = reply_to(record, server)
        if partition is not None:
            if args.rate:
                next_read = max(next_read, time.monotonic() - 0.1) + 1 / args.rate
            if reader.ask(lambda: replies.has(partition)):
                replies.send(record.value(), record.key(), partition)
            else:
                print(f"server: record {record.offset()} wants its reply in partition {partition} of "
                      "the downlink, which is not there", file=sys.stderr)
        reader.read, reader.last_time = record.offset() + 1, record.timestamp()[1]
finally:
    if replies.producer.flush(10) == 0 and not replies.failed:
        try:
            reader.commit(asynchronous=False)
        except KafkaException as error:
            print(f"server {reader.place.partition}: {error}", file=sys.stderr)
    reader.consumer.close()
