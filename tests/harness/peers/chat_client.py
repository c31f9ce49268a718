#!/usr/bin/python3
"""A member of the chat, by the library `websockets`: greets, and answers who greets.

Usage: chat_client.py ws://HOST:PORT/NAME
Prints what it hears. Needs Debian's python3-websockets.
"""
import asyncio
import sys

import websockets


async def main(url):
    name = url.rsplit("/", 1)[1]
    async with websockets.connect(url) as room:
        await room.send("hello, here is " + name + " la" * 400)
        await room.ping()
        async for line in room:
            print(line[:100], flush=True)
            who, _, text = line.partition(": ")
            if text.startswith("hello") and who != name:
                await room.send(f"{name} hears {who}")
            if text == "go":
                await room.close(4001, "as asked")
                print("closed", room.close_code, flush=True)


asyncio.run(main(sys.argv[1]))
