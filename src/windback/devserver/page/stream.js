// The stream of the server, once per browser.
//
// A browser opens six HTTP/1.1 connections to a host, so a stream in each tab would hang the seventh. One tab leads:
// it holds a Web Lock, reads the stream and passes everything on through a BroadcastChannel. When it is closed, the
// browser gives the lock to another tab, which continues from the last id that all of them received.

const RETRY_S = [0.5, 1, 2, 3];

const channel = "BroadcastChannel" in window ? new BroadcastChannel("windback") : null;
let handler = () => {};
let last = null; // the id of the last message, from the leader or received as the leader
let live = { state: "connecting" };
let leads = false;
let lastState = null; // for tabs that come later

/** Start; `onMessage({type, data})` gets what the server sends, and {type: "live", data} when the connection changes. */
export function start(onMessage) {
  handler = onMessage;
  if (channel) {
    channel.onmessage = ({ data }) => receive(data);
    channel.postMessage({ type: "hello" });
  }
  if (navigator.locks && channel) navigator.locks.request("windback-stream", lead);
  else lead(); // a plain-HTTP address of the LAN has no locks: then each tab has its own stream
}

function receive(message) {
  if (message.type === "hello") {
    if (leads) for (const each of [{ type: "live", data: live }, lastState]) if (each) channel.postMessage(each);
    return;
  }
  if (message.type === "state") lastState = message;
  if (message.id) last = message.id;
  handler(message);
}

function tell(message) {
  channel?.postMessage(message);
  receive(message);
}

function setLive(data) {
  live = data;
  tell({ type: "live", data });
}

async function lead() {
  leads = true;
  let failures = 0;
  let seen = null;
  for (;;) {
    try {
      await read(() => {
        failures = 0;
        seen = Date.now();
        if (live.state !== "live") setLive({ state: "live" });
      });
    } catch {
      // Refused or cut: both mean to try again.
    }
    const wait = RETRY_S[Math.min(failures, RETRY_S.length - 1)];
    failures += 1;
    setLive({ state: failures > 3 ? "stopped" : "lost", seconds: wait, seen });
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
  }
}

/** Read one connection to its end. `fetch` and no EventSource: that one cannot start from an id of our choice. */
async function read(onAlive) {
  const headers = { accept: "text/event-stream" };
  if (last) headers["last-event-id"] = last;
  const answer = await fetch("/_dev/stream", { headers, cache: "no-store" });
  if (!answer.ok) throw new Error(String(answer.status));
  onAlive();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onAlive();
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) dispatch(block);
  }
}

function dispatch(block) {
  const message = { type: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue; // a comment keeps the connection alive
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("event:")) message.type = value;
    else if (line.startsWith("data:")) message.data += value;
    else if (line.startsWith("id:")) message.id = value;
  }
  if (message.data) tell({ ...message, data: JSON.parse(message.data) });
}
