#!/usr/bin/python3
"""An MQTT client that publishes numbers one after another, whatever happens to its connections, and
prints `acknowledged N` for each one that is: paho-mqtt's own reconnecting and retrying, nothing more.

Usage: mqtt_steady.py HOST PORT VERSION QOS COUNT NAME
"""
import queue
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

host, port, version, qos, count, name = sys.argv[1:]
WINDOW = 10
is_v5 = version == "5"
acknowledged = queue.Queue()
numbers = {}  # by the library's message

arguments = {} if is_v5 else {"clean_session": False}
client = mqtt.Client(client_id=name, protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311, **arguments)
client.reconnect_delay_set(1, 1)
client.on_publish = lambda _client, _data, id: acknowledged.put(id)
client.on_connect = lambda *_: print("connected", flush=True)
options = {}
if is_v5:
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 600
    options = {"clean_start": False, "properties": session}


def wait_for_room(most):
    while len(numbers) > most:
        print(f"acknowledged {numbers.pop(acknowledged.get())}", flush=True)


client.connect(host, int(port), keepalive=5, **options)
client.loop_start()
for number in range(int(count)):
    wait_for_room(WINDOW - 1)
    numbers[client.publish("number", str(number), int(qos)).mid] = number
    time.sleep(0.005)
wait_for_room(0)
client.disconnect()
client.loop_stop()
print("done", flush=True)
