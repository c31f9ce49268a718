#!/usr/bin/env bash
# librdkafka 2.12.1 and 2.16.0 with Apache Kafka 4.3.1: what a producer is told when it has nothing to do.
#
# Kafka closes connections that are idle for connections.max.idle.ms (ten minutes by default; two seconds
# here), and that is good order on both sides. A producer that was quiet for so long is told of it as
# _ALL_BROKERS_DOWN: by 2.12.1 at least the first time, by 2.16.0 each time, twice. The broker serves all others
# meanwhile, and the producer's own next message is delivered within a moment. So this error alone is no
# reason to restart a client: whoever does so restarts each quiet one of a healthy cluster, for ever.
set -euo pipefail
KAFKA=4.3.1
CONFLUENT=2.12.1
BROKER_SETTINGS=connections.max.idle.ms=2000
. "$(dirname "$0")/broker.inc"

cat >"$folder/quiet.py" <<'PY'
import sys
import time
import confluent_kafka
from confluent_kafka import KafkaError, Producer

broker = sys.argv[1]
SECONDS = 8
ROUNDS = 3


def deliver(producer):
    """Seconds until a message is acknowledged."""
    delivered = []
    began = time.monotonic()
    producer.produce("topic", b"1", on_delivery=lambda error, _: delivered.append(error))
    while not delivered:
        producer.poll(0.1)
    assert delivered == [None], delivered
    return time.monotonic() - began


told, counts = [], []
quiet = Producer({"bootstrap.servers": broker, "log_level": 0,
                  "error_cb": lambda error: told.append(error.code())})
busy = Producer({"bootstrap.servers": broker, "log_level": 0})
print("librdkafka", confluent_kafka.libversion()[0])
for _ in range(ROUNDS):
    told.clear()
    took = deliver(quiet)
    served = 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        quiet.poll(0.1)
        deliver(busy)
        served += 1
    down = told.count(KafkaError._ALL_BROKERS_DOWN)
    print(f"delivered after {took:.2f} s; then, in {SECONDS} s without a message, told {down} times "
          f"that all brokers are down, while another producer delivered {served} messages")
    assert served > 10, "the broker was not well"
    counts.append(down)
# The older one is sure to speak up the first time only.
wanted = counts[0] if sys.argv[2] == "once" else min(counts)
assert wanted >= 1, "the behaviour has changed"
PY
"$PYTHON" "$folder/quiet.py" "$BROKER" once
"$PYTHON" -m pip --quiet --disable-pip-version-check install confluent-kafka==2.16.0
"$PYTHON" "$folder/quiet.py" "$BROKER" each-time
