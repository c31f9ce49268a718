// An MQTT client in JavaScript: publishes at every QoS what mqtt_echo.py sends back, and checks it.
//
// Usage: node mqtt.js HOST PORT VERSION     (VERSION: 3.1.1 or 5)
// Prints `echoed N` at the end. Needs MQTT.js, which is looked for along NODE_PATH.
const assert = require("node:assert");
const mqtt = require("mqtt");

const [host, port, version] = process.argv.slice(2);
const MESSAGES = 30, PATIENCE_MS = 60_000;
const late = setTimeout(() => { throw new Error("no echo in time"); }, PATIENCE_MS);

async function main() {
  const client = await mqtt.connectAsync({
    host, port: Number(port), protocolVersion: version === "5" ? 5 : 4, clientId: `js-${version}`,
  });
  const expected = new Map();
  const all = new Promise((resolve, reject) => {
    client.on("message", (topic, payload, packet) => {
      try {
        assert.deepStrictEqual([payload.toString(), packet.qos], expected.get(topic));
      } catch (error) {
        reject(error);
      }
      expected.delete(topic);
      if (expected.size === 0) resolve();
    });
  });
  const [granted] = await client.subscribeAsync("echo/#", { qos: 2 });
  assert.strictEqual(granted.qos, 2);
  for (let number = 0; number < MESSAGES; number += 1) {
    expected.set(`echo/js/${number}`, [`${number}: ünïcödé`, number % 3]);
  }
  await Promise.all([...expected].map(([topic, [payload, qos]]) =>
    client.publishAsync(topic.slice("echo/".length), payload, { qos })));
  await all;
  await client.endAsync();
  clearTimeout(late);
  console.log(`echoed ${MESSAGES}`);
}

main();
