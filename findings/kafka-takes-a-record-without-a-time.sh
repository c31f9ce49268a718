#!/usr/bin/env bash
# Apache Kafka 4.3.1: the bounds on a record's time do not apply to a record that has none.
#
# A topic with CreateTime and message.timestamp.before.max.ms = message.timestamp.after.max.ms = 1000 refuses
# a record of a minute ago and one of a minute to come. A time of -1 is how the protocol says "none"; one
# would expect it to be refused as the oldest of all, or to get the broker's time. Seen: it is written, stays
# -1, and consumers are told that there is no time. Retention goes by the time of the segment's file then.
#
# So a writer whose clock cannot be trusted loses nothing if it sends no time at all.
set -euo pipefail
KAFKA=4.3.1
CONFLUENT=2.16.1
. "$(dirname "$0")/broker.inc"

"$PYTHON" - "$BROKER" <<'PY'
import sys
import time
import confluent_kafka
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

broker = sys.argv[1]
topic = NewTopic("times", 1, 1, config={
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": "1000",
    "message.timestamp.after.max.ms": "1000",
})
admin = AdminClient({"bootstrap.servers": broker})
admin.create_topics([topic])["times"].result()


def write(stamp):
    told = []
    producer = Producer({"bootstrap.servers": broker})
    producer.produce("times", b"value", partition=0, timestamp=stamp,
                     on_delivery=lambda error, _: told.append(error.name() if error else "written"))
    producer.flush(30)
    return told[0]


now = int(time.time() * 1000)
seen = {
    "a minute ago": write(now - 60_000),
    "in a minute": write(now + 60_000),
    "none": write(-1),
}
consumer = Consumer({"bootstrap.servers": broker, "group.id": "look"})
consumer.assign([TopicPartition("times", 0, 0)])
stored = consumer.poll(30).timestamp()
consumer.close()
print("librdkafka", confluent_kafka.libversion()[0])
for case, told in seen.items():
    print(f"{case:13} {told}")
print("stored time  ", stored)
assert seen == {
    "a minute ago": "INVALID_TIMESTAMP", "in a minute": "INVALID_TIMESTAMP", "none": "written",
}, "the behaviour has changed"
assert stored[1] == -1, "the broker has given it a time"
PY
