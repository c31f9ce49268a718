#!/usr/bin/node
// A member of the chat, by the library `ws`: greets, and answers who greets.
//
// Usage: chat_client.cjs ws://HOST:PORT/NAME
// Prints what it hears. Needs Debian's node-ws.
const WebSocket = require("/usr/share/nodejs/ws");

const name = process.argv[2].split("/").pop();
const room = new WebSocket(process.argv[2], { perMessageDeflate: { threshold: 0 } });
room.on("open", () => room.send(`hello, here is ${name}`));
room.on("message", (data, binary) => {
  const line = data.toString();
  console.log(binary ? "binary!" : line.slice(0, 100));
  const [who, text = ""] = line.split(": ");
  if (text.startsWith("hello") && who !== name) room.send(`${name} hears ${who}`);
});
room.on("close", (code, reason) => console.log("closed", code, reason.toString()));
room.on("error", (error) => { console.error(error); process.exit(1); });
