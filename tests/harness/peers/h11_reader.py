#!/usr/bin/python3
"""Reads requests of HTTP/1.1 with h11, for comparison with the relay's codec.

Standard input: streams, each after its length in four bytes, most significant first.
Standard output: for each a line of JSON: the whole requests in it, and what h11 found wrong, if anything.
Needs h11 (Debian: python3-h11).
"""
import json
import signal
import struct
import sys

import h11


def read(stream):
    connection, requests, request = h11.Connection(h11.SERVER), [], None
    connection.receive_data(stream)
    try:
        # Each event takes a byte at least, or ends a head or a message.
        for _ in range(4 * len(stream) + 16):
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or type(event) is h11.ConnectionClosed:
                return requests, None
            if isinstance(event, h11.Request):
                request = {"method": event.method.decode(), "target": event.target.decode(),
                           "version": event.http_version.decode(), "body": "",
                           "headers": [[n.decode(), v.decode("latin-1")] for n, v in event.headers]}
            elif isinstance(event, h11.Data):
                request["body"] += bytes(event.data).decode("latin-1")
            elif isinstance(event, h11.EndOfMessage):
                requests.append(request)
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return requests, None
                connection.start_next_cycle()
        raise RuntimeError(f"h11 comes to no end with {stream!r}")
    except h11.RemoteProtocolError as error:
        return requests, str(error)


signal.alarm(300)  # whatever happens, it does not run for ever
while length := sys.stdin.buffer.read(4):
    requests, error = read(sys.stdin.buffer.read(struct.unpack(">I", length)[0]))
    print(json.dumps({"requests": requests, "error": error}))
