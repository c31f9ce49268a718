#!/usr/bin/env bash
# librdkafka 2.16.0 with Apache Kafka 4.3.1: what a producer is told of a batch that the broker refuses.
#
# A topic with CreateTime refuses a record whose time is further ahead of the broker's clock than
# message.timestamp.after.max.ms, and the whole batch with it. One would expect each of those records to be
# reported with INVALID_TIMESTAMP, however many they are, and their neighbours as innocent. Seen:
#
#   alone         INVALID_TIMESTAMP
#   one of three  INVALID_TIMESTAMP, of all three: nothing says which one it was
#   two of three  INVALID_RECORD for the two, _INVALID_DIFFERENT_RECORD for the third: the cause is lost
#
# So whoever wants to know why, or to save the neighbours, sends each record again, alone.
set -euo pipefail
KAFKA=4.3.1
CONFLUENT=2.16.1
. "$(dirname "$0")/broker.inc"

"$PYTHON" - "$BROKER" <<'PY'
import sys
import time
import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

broker = sys.argv[1]
topic = NewTopic("times", 1, 1, config={"message.timestamp.type": "CreateTime"})
admin = AdminClient({"bootstrap.servers": broker})
admin.create_topics([topic])["times"].result()


def batch(*times):
    """What is reported of records with these times, sent in one batch."""
    told = [None] * len(times)
    producer = confluent_kafka.Producer({"bootstrap.servers": broker, "linger.ms": 1000})
    for place, stamp in enumerate(times):
        def report(error, _, place=place):
            told[place] = error.name() if error else "written"
        producer.produce("times", b"value", partition=0, timestamp=stamp, on_delivery=report)
    producer.flush(30)
    return told


print("librdkafka", confluent_kafka.libversion()[0])
now = int(time.time() * 1000)
ahead = now + 2 * 3600 * 1000
seen = {
    "alone": batch(ahead),
    "one of three": batch(now, ahead, now),
    "two of three": batch(ahead, now, ahead),
}
for case, told in seen.items():
    print(f"{case:13} {told}")
assert seen == {
    "alone": ["INVALID_TIMESTAMP"],
    "one of three": ["INVALID_TIMESTAMP"] * 3,
    "two of three": ["INVALID_RECORD", "_INVALID_DIFFERENT_RECORD", "INVALID_RECORD"],
}, "the behaviour has changed"
PY
