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

from confluent_kafka import OFFSET_STORED, Consumer, KafkaException, Producer, TopicPartition

PART_BYTES = 65536
brokers, partition, prefix, folder = sys.argv[1:]
folder = pathlib.Path(folder).resolve()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{prefix}server-{partition}",
                     "auto.offset.reset": "earliest", "enable.auto.offset.store": False,
                     "auto.commit.interval.ms": 1000})
consumer.assign([TopicPartition(prefix + "uplink", int(partition), OFFSET_STORED)])
producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 1,
                     "message.timeout.ms": 0})  # a broker that is away is waited for
bodies = {}  # of requests of which not all parts have come
undone = {}  # offsets that were read and are not answered, in their order


def file(target, wanted_range):
    """Status, fields and body for a path."""
    path = urllib.parse.unquote(target.split("?")[0]).replace("\0", "").lstrip("/")
    path = (folder / path).resolve()
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
    # A client may write anything; what is no text is found nowhere.
    method, target, wanted = (headers.get(name, b"").decode(errors="replace") for name in
                              ("http.method", "http.target", "http.header.range"))
    if method == "POST":
        return "200", {"content-type": "application/octet-stream"}, [body]
    if target == "/events":
        return "200", {"content-type": "text/event-stream"}, [b"data: %d\n\n" % n for n in range(3)]
    status, fields, body = file(target, wanted)
    fields["content-length"] = str(len(body))
    return status, fields, [body if method != "HEAD" else b""]


def done(offsets):
    """Those are answered: the position is before the first that is not."""
    for offset in offsets:
        undone.pop(offset, None)
    position = next(iter(undone), read)
    consumer.store_offsets(offsets=[TopicPartition(prefix + "uplink", int(partition), position)])


def delivered(error, offsets):
    if error:  # what is not committed is read again by whoever is started next
        sys.exit(f"site: a reply was not delivered: {error}")
    done(offsets)


def reply(record, headers, body, offsets):
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
                         (error or last) and delivered(error, offsets))


try:
    while True:
        producer.poll(0)
        record = consumer.poll(0.01)
        if record is None or record.error():
            continue
        undone[record.offset()], read, offsets = True, record.offset() + 1, [record.offset()]
        try:
            headers = dict(record.headers() or [])  # fails if a name is not UTF-8
            if headers.get("kind") == b"close":
                done(bodies.pop(record.key(), (None, None, []))[2] + [record.offset()])
            elif "kind" in headers:
                done([record.offset()])
            elif "http.part" in headers:  # the first part has the request's own headers
                part = (headers, bytearray(), [])
                first, body, offsets = bodies.setdefault(record.key(), part)
                body += record.value() or b""
                offsets.append(record.offset())
                if "http.last" in headers:
                    del bodies[record.key()]
                    reply(record, {**first, **headers}, bytes(body), offsets)
            else:
                reply(record, headers, record.value() or b"", offsets)
        except (KafkaException, LookupError, OSError, OverflowError, TypeError, ValueError,
                SystemError) as error:
            print(f"site: record {record.offset()} is no request: {error!r}", file=sys.stderr)
            done(offsets)
finally:
    producer.flush(10)
    consumer.close()
