"use strict";

const say = (id, text) => {
  const cell = document.getElementById(id);
  cell.textContent = text;
  cell.className = "yes";
};

const picture = async () => {
  const image = new Image();
  image.src = "dots.png";
  await image.decode();
  say("picture", `${image.naturalWidth} × ${image.naturalHeight}`);
};

const echo = async () => {
  const body = new Uint8Array(200000).map((_, index) => index % 251);
  const response = await fetch("/echo", { method: "POST", body });
  const back = new Uint8Array(await response.arrayBuffer());
  if (back.length === body.length && back.every((byte, index) => byte === body[index])) {
    say("echo", "the same");
  }
};

const large = async () => {
  const response = await fetch("/size-1048576");
  say("large", `${(await response.arrayBuffer()).byteLength} bytes`);
};

const events = () => new Promise((resolve) => {
  const source = new EventSource("/events");
  let seen = 0;
  source.onmessage = () => {
    seen += 1;
    if (seen === 3) {
      say("events", `${seen} events`);
      source.close();
      resolve();
    }
  };
});

say("script", "yes");
Promise.all([picture(), echo(), large(), events()])
  .then(() => { document.getElementById("end").textContent = "All of it has come."; });
