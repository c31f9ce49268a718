#!/usr/bin/python3
"""A web site behind Millrace: HTTP requests come from Kafka, files go back by it, large ones in parts.

Usage: site.py BROKERS PARTITION PREFIX FOLDER
For example: site.py 127.0.0.1:9092 0 millrace. /var/www
GET and HEAD get files of the folder, GET /events a stream of events; POST gets its own body back.
Needs confluent-kafka (Debian: python3-confluent-kafka). The contract: docs/protocols.md.
"""
import mimetypes
import pathlib
import re
import signal
import sys
import urllib.parse

from confluent_kafka import OFFSET_STORED, Consumer, Producer, TopicPartition

PART_BYTES = 65536
brokers, partition, prefix, folder = sys.argv[1:]
folder = pathlib.Path(folder).resolve()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{prefix}server-{partition}",
                     "auto.offset.reset": "earliest", "enable.auto.offset.store": False,
                     "auto.commit.interval.ms": 1000})
consumer.assign([TopicPartition(prefix + "uplink", int(partition), OFFSET_STORED)])
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 1})
bodies = {}  # of requests of which not all parts have come


def file(target, wanted_range):
    """Status, fields and body for a path."""
    path = (folder / urllib.parse.unquote(target.split("?")[0]).lstrip("/")).resolve()
    path = path / "index.html" if path.is_dir() else path
    if not path.is_file() or folder not in path.parents:
        return "404", {"content-type": "text/plain"}, b"there is no such file\n"
    body, kind = path.read_bytes(), mimetypes.guess_type(path)[0] or "application/octet-stream"
    fields = {"content-type": kind, "accept-ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted_range or "")
    if not match or match.group() == "bytes=-":
        return "200", fields, body
    first, last = match.groups()
    start = int(first) if first else max(len(body) - int(last), 0)
    end = min(int(last), len(body) - 1) if first and last else len(body) - 1
    if start > end:
        return "416", {"content-range": f"bytes */{len(body)}"}, b""
    fields["content-range"] = f"bytes {start}-{end}/{len(body)}"
    return "206", fields, body[start:end + 1]


def answer(headers, body):
    method, target = headers["http.method"].decode(), headers["http.target"].decode()
    if method == "POST":
        return "200", {"content-type": "application/octet-stream"}, [body]
    if target == "/events":
        return "200", {"content-type": "text/event-stream"}, [b"data: %d\n\n" % n for n in range(3)]
    status, fields, body = file(target, headers.get("http.header.range", b"").decode())
    fields["content-length"] = str(len(body))
    return status, fields, [body if method != "HEAD" else b""]


def reply(record, headers, body):
    status, fields, pieces = answer(headers, body)
    parts = [piece[n:n + PART_BYTES] for piece in pieces for n in range(0, len(piece), PART_BYTES)]
    parts = parts or [b""]
    for number, part in enumerate(parts):
        out = [("http.request", headers["http.request"])]
        if number == 0:
            out += [("http.status", status)]
            out += [("http.header." + name, value) for name, value in fields.items()]
        last = number == len(parts) - 1
        if len(parts) > 1:
            out += [("http.part", str(number))] + [("http.last", "1")] * last
        producer.produce(prefix + "downlink", part, record.key(), headers=out,
                         partition=int(headers["reply"]), on_delivery=lambda error, _, last=last:
                         last and error is None and consumer.store_offsets(record))


try:
    while True:
        producer.poll(0)
        record = consumer.poll(0.01)
        if record is None or record.error():
            continue
        headers = dict(record.headers() or [])
        if headers.get("kind") == b"close":
            bodies.pop(record.key(), None)
        if "kind" in headers:
            continue
        if "http.part" in headers:  # the first part has the request's own headers
            first, body = bodies.setdefault(record.key(), (headers, bytearray()))
            body += record.value()
            if "http.last" not in headers:
                continue
            reply(record, {**first, **headers}, bytes(body))
            del bodies[record.key()]
        else:
            reply(record, headers, record.value() or b"")
finally:
    producer.flush(10)
    consumer.close()
