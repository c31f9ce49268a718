#!/usr/bin/env bash
# Apache Kafka 4.3.1: from an idempotent producer that a partition does not know, it takes any first sequence
# number.
#
# An idempotent producer (KIP-98) numbers the records of each partition from 0, and a broker refuses a batch
# whose number does not follow the last one (OUT_OF_ORDER_SEQUENCE_NUMBER, 45). One would expect the first
# batch to be held to 0. Seen: a partition that has nothing of a producer id takes a first batch that begins
# with 100, and refuses 0 and 104 from then on; 105 follows its five records. After the producer's next epoch,
# it does want 0.
#
# So a client that has several batches on their way before the first one was acknowledged can lose their
# order without an error: if the first is refused for a passing reason and the second is not, the second is
# written, and the first can never be again. One batch on its way until one is acknowledged avoids that.
set -euo pipefail
KAFKA=4.3.1
CONFLUENT=2.16.1
. "$(dirname "$0")/broker.inc"

"$PYTHON" - "$BROKER" <<'PY'
import socket
import struct
import sys
import time
from confluent_kafka.admin import AdminClient, NewTopic

host, port = sys.argv[1].split(":")
TOPIC = "numbers"
admin = AdminClient({"bootstrap.servers": sys.argv[1]})
admin.create_topics([NewTopic(TOPIC, 1, 1)])[TOPIC].result()
connection = socket.create_connection((host, int(port)))


def receive(count):
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data)) or sys.exit("the broker has closed the connection")
    return data


def ask(key, version, body):
    """A request with the old header (without tags), and the body of its answer."""
    request = struct.pack(">hhih", key, version, 7, -1) + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    return receive(struct.unpack(">i", receive(4))[0])[4:]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def batch(producer, epoch, first, count):
    """A record batch of format 2, with small records."""
    record = b"\x00\x00%s\x01\x02x\x00"  # attributes, time, place, no key, one byte, no headers
    records = b""
    for place in range(count):
        body = record.replace(b"%s", bytes([2 * place]))
        records += bytes([2 * len(body)]) + body
    body = struct.pack(">hiqqqhii", 0, count - 1, 0, 0, producer, epoch, first, count) + records
    after_length = struct.pack(">ibI", -1, 2, crc32c(body)) + body
    return struct.pack(">qi", 0, len(after_length)) + after_length


def produce(producer, epoch, first, count=5):
    """Produce 3, acks=all: the error's code, and the offset."""
    data = batch(producer, epoch, first, count)
    name = struct.pack(">h", len(TOPIC)) + TOPIC.encode()
    body = struct.pack(">hhi", -1, -1, 10_000)
    body += struct.pack(">i", 1) + name + struct.pack(">iii", 1, 0, len(data)) + data
    answer = ask(0, 3, body)
    return struct.unpack(">hq", answer[4 + len(name) + 4 + 4:][:10])


# InitProducerId 0, without a transactional id; 14 and 15 while the broker has no ids to give yet.
deadline = time.monotonic() + 60
error = 14
while error in (14, 15):
    _, error, producer, epoch = struct.unpack(">ihqh", ask(22, 0, struct.pack(">hi", -1, 60_000)))
    assert time.monotonic() < deadline, error
assert error == 0, error

seen = {
    "first batch, number 100": produce(producer, epoch, 100),
    "then number 0": produce(producer, epoch, 0),
    "then number 104": produce(producer, epoch, 104),
    "then number 105": produce(producer, epoch, 105),
    "next epoch, number 110": produce(producer, epoch + 1, 110),
    "next epoch, number 0": produce(producer, epoch + 1, 0),
}
for case, (error, offset) in seen.items():
    print(f"{case:24} error {error}, offset {offset}")
assert seen == {
    "first batch, number 100": (0, 0),
    "then number 0": (45, -1),
    "then number 104": (45, -1),
    "then number 105": (0, 5),
    "next epoch, number 110": (45, -1),
    "next epoch, number 0": (0, 10),
}, "the behaviour has changed"
PY
