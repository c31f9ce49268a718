#!/usr/bin/python3
"""An MQTT client: publishes at every QoS what mqtt_echo.py sends back, and checks what comes.

Usage: mqtt_paho.py HOST PORT VERSION     (VERSION: 3.1.1 or 5)
Prints `echoed N` at the end. Needs paho-mqtt (Debian: python3-paho-mqtt).
"""
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

host, port, version = sys.argv[1:]
is_v5 = version == "5"
MESSAGES, PATIENCE_S = 30, 30
came, acknowledged, events = queue.Queue(), queue.Queue(), queue.Queue()

client = mqtt.Client(client_id=f"paho-{version}",
                     protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311)
client.on_connect = lambda _client, _data, _flags, reason, *_: events.put(("connect", int(
    reason.value if is_v5 else reason)))
client.on_subscribe = lambda _client, _data, _id, granted, *_: events.put(
    ("subscribe", [int(code.value if is_v5 else code) for code in granted]))
client.on_publish = lambda _client, _data, id: acknowledged.put(id)
client.on_message = lambda _client, _data, message: came.put(message)


def expect(what, wanted):
    event = events.get(timeout=PATIENCE_S)
    assert event == (what, wanted), event


client.connect(host, int(port), keepalive=10)
client.loop_start()
expect("connect", 0)
client.subscribe([("echo/+/temperature", 2), ("$share/g/echo/#", 1)])
expect("subscribe", [2, 0x9E if is_v5 else 0x80])

properties = None
if is_v5:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "text/plain"
    properties.CorrelationData = b"\x00\xff"
    properties.UserProperty = [("unit", "C"), ("unit", "K")]
sent = {}
for number in range(MESSAGES):
    qos, payload = number % 3, f"{number}: größer als Kälte".encode()
    topic = f"room{number}/temperature"
    client.publish(topic, payload, qos, properties=properties)
    # Of another topic, which is not subscribed to.
    client.publish(f"room{number}/noise", b"", qos)
    sent["echo/" + topic] = (payload, qos)

for _ in range(2 * MESSAGES):
    acknowledged.get(timeout=PATIENCE_S)
for _ in range(MESSAGES):
    message = came.get(timeout=PATIENCE_S)
    payload, qos = sent.pop(message.topic)
    assert (message.payload, message.qos, message.retain) == (payload, qos, 0), vars(message)
    if is_v5:
        assert message.properties.ContentType == "text/plain", message.properties
        assert message.properties.CorrelationData == b"\x00\xff", message.properties
        # librdkafka's headers are a list, but the echo's are by name: the last one is there.
        assert message.properties.UserProperty == [("unit", "K")], message.properties
assert not sent and came.empty(), (sent, came.qsize())
client.disconnect()
client.loop_stop()
print(f"echoed {MESSAGES}")
