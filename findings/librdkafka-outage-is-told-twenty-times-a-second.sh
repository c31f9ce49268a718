#!/usr/bin/env bash
# librdkafka 2.12.1 and 2.16.0: how often a consumer is told that its only broker is away.
#
# reconnect.backoff.ms grows from 100 ms to reconnect.backoff.max.ms, 10 s, so one would expect a handful of errors in
# a quarter of a minute. With the default of metadata.recovery.strategy, rebootstrap, it is told some twenty times a
# second for as long as the outage lasts: 2.12.1 says _ALL_BROKERS_DOWN, 2.16.0 says _TRANSPORT. With none it is three
# times in all. The errors are kept, however seldom the consumer polls: fifteen polls a second apart are served all of
# them. A consumer that gets errors as events and takes one in a turn (rd_kafka_queue_poll, or a binding on top of it)
# so falls behind, and what comes after the outage, its assignment for one, waits at the end of the queue.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/outage.py" <<'PY'
import collections
import sys
import time
import confluent_kafka
from confluent_kafka import Consumer

SECONDS = 15


def told(strategy, pause):
    """Errors by name, while nobody listens at the broker's address."""
    errors = collections.Counter()
    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "group", "log_level": 0,
                         "metadata.recovery.strategy": strategy,
                         "error_cb": lambda error: errors.update([error.name()])})
    consumer.subscribe(["topic"])
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        consumer.poll(pause)
    consumer.close()
    return errors


name = sys.argv[1]
print("librdkafka", confluent_kafka.libversion()[0])
for pause in (0.05, 1.0):
    errors = told("rebootstrap", pause)
    print(f"rebootstrap, polled every {pause} s: in {SECONDS} s {dict(errors)}")
    assert errors[name] > 10 * SECONDS, "the behaviour has changed"
errors = told("none", 0.05)
print(f"none: {dict(errors)}")
assert sum(errors.values()) < SECONDS, "the behaviour has changed"
PY
for version_and_name in 2.12.1:_ALL_BROKERS_DOWN 2.16.0:_TRANSPORT; do
    version=${version_and_name%%:*}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip --quiet --disable-pip-version-check install "confluent-kafka==$version"
    "$folder/$version/bin/python" "$folder/outage.py" "${version_and_name#*:}" 2>/dev/null
done
