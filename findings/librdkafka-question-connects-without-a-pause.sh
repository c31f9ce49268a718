#!/usr/bin/env bash
# librdkafka 2.12.1 with Apache Kafka 4.3.1: an administrator's question while no broker is there.
#
# A client that cannot connect waits between two tries, from reconnect.backoff.ms (100 ms by default) up to
# reconnect.backoff.max.ms (10 s), so one would expect a handful of connections in five seconds. While a
# question such as DescribeTopics waits for a broker there is no pause: more than 100,000 connections were
# seen, and 3 s of processor time. With enable.sparse.connections=false, which by its description has
# nothing to do with questions, it pauses. (2.16.0 pauses in either case.)
set -euo pipefail
KAFKA=4.3.1
CONFLUENT=2.12.1
. "$(dirname "$0")/broker.inc"

cat >"$folder/ask.py" <<'PY'
import json
import os
import signal
import sys
import time
import confluent_kafka
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic

broker, broker_pid = sys.argv[1], int(sys.argv[2])
SECONDS = 5


def client(sparse):
    """A client that knows the broker, and where its count of connections is kept."""
    seen = {"connects": 0}

    def statistics(text):
        brokers = json.loads(text)["brokers"].values()
        seen["connects"] = sum(each["connects"] for each in brokers)

    settings = {"bootstrap.servers": broker, "log_level": 0, "statistics.interval.ms": 200,
                "stats_cb": statistics, "enable.sparse.connections": sparse}
    admin = AdminClient(settings)
    admin.list_topics(timeout=10)
    return admin, seen


def count(admin, seen, ask):
    """Connections, and seconds of processor time, while nobody is there."""
    admin.poll(0.5)
    connects, began = seen["connects"], time.process_time()
    if ask:
        # Held, for as long as it may be answered.
        question = admin.describe_topics(TopicCollection(["topic"]), request_timeout=SECONDS)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        admin.poll(0.1)
    return seen["connects"] - connects, time.process_time() - began


def has_ended(pid):
    """The shell may or may not have seen to it already."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return "State:\tZ" in status.read()
    except FileNotFoundError:
        return True


clients = [client(True), client(True), client(False)]
clients[0][0].create_topics([NewTopic("topic", 1, 1)])["topic"].result()
os.kill(broker_pid, signal.SIGTERM)
while not has_ended(broker_pid):
    time.sleep(0.1)
print("librdkafka", confluent_kafka.libversion()[0])
cases = ["no question", "a question", "a question, not sparse"]
told = [count(*each, ask) for each, ask in zip(clients, [False, True, True])]
for case, (connects, seconds) in zip(cases, told):
    print(f"{case:23} {connects:7} connections in {SECONDS} s, {seconds:.1f} s of processor time")
quiet, asked, whole = (connects for connects, _ in told)
assert quiet < 100 and whole < 100 and asked > 2000, "the behaviour has changed"
PY
"$PYTHON" "$folder/ask.py" "$BROKER" "$broker_pid"
