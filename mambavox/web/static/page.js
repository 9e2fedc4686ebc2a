// The page: a microphone or a recording goes to the server, text comes back (docs/serve.md).

import { toPcm } from "./resampler.js";

const RATE = 16000;
const PIECE = 0.1; // seconds of a recording in a message
const UNSENT = 1 << 18; // bytes that may wait in the browser
const UNSURE = 0.5; // confidence below which a word is marked

const at = (id) => document.getElementById(id);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const inWords = (seconds) => `${Math.round(1000 * seconds)} ms`;

let session = null; // what is going on

// A connection that has been let in.
class Session {
  constructor() {
    this.sent = 0; // seconds of audio
    this.began = null; // performance.now() at which second 0 was spoken, where that is known
    this.shown = ""; // text of the segment that goes on
    this.ended = new Promise((resolve) => (this.finish = resolve));
  }

  open(token) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/listen`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.say({ type: "start", sampling_rate: RATE, ...(token && { token }) });
    this.socket.onclose = ({ code, reason }) => {
      this.stop();
      if (code !== 1000) complain(reason || `the connection was closed (${code}); is the server still there?`);
      this.finish();
    };
    return new Promise((resolve) => {
      this.ended.then(() => resolve(false));
      this.socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "ready") resolve(true);
        else this.hear(event);
      };
    });
  }

  say(message) {
    this.socket.send(JSON.stringify(message));
  }

  get live() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  send(pcm) {
    if (!this.live) return;
    this.socket.send(pcm);
    this.sent += pcm.byteLength / 2 / RATE;
  }

  end() {
    if (this.live) this.say({ type: "end" });
  }

  stop() {}

  hear(event) {
    if (event.type === "error") complain(event.message);
    if (event.type !== "partial" && event.type !== "final") return;
    at("heard").textContent = `${event.heard.toFixed(1)} s`;
    at("server-delay").textContent = inWords(event.delay);
    if (event.type === "partial") at("partial").textContent = event.text;
    else showFinal(event);
    // A final event may say nothing new.
    if (this.began !== null && event.text !== this.shown) showDelay((performance.now() - this.began) / 1000 - event.end);
    this.shown = event.type === "final" ? "" : event.text;
  }
}

function showFinal(event) {
  const line = document.createElement("p");
  const time = document.createElement("time");
  time.textContent = `${event.start.toFixed(1)} s`;
  line.append(time);
  event.words.forEach((word, index) => {
    const span = document.createElement("span");
    span.textContent = word.text;
    span.title = `${word.start.toFixed(2)} to ${word.end.toFixed(2)} s, confidence ${word.confidence.toFixed(2)}`;
    if (word.confidence < UNSURE) span.className = "unsure";
    line.append(...(index ? [" "] : []), span);
  });
  at("finals").append(line);
  at("partial").textContent = "";
  line.scrollIntoView({ block: "nearest" });
}

const delays = [];

function showDelay(seconds) {
  delays.push(seconds);
  if (delays.length > 200) delays.shift();
  const sorted = [...delays].sort((a, b) => a - b);
  const part = (share) => inWords(sorted[Math.floor(share * (sorted.length - 1))]);
  at("delay").textContent = inWords(seconds);
  at("delays").textContent = `${part(0.5)}, ${part(0.95)}`;
}

function complain(message) {
  at("error").textContent = message;
  at("error").hidden = false;
}

function state(text) {
  at("state").textContent = text;
  const busy = session !== null;
  at("choose").disabled = busy;
  at("microphone").disabled = busy && text !== "listening";
  at("microphone").classList.toggle("on", text === "listening");
  at("microphone").textContent = text === "listening" ? "Stop" : "Start the microphone";
}

// Runs one session from its beginning to its end. `open` gets the sound, however long the user is asked for it, and gives
// what feeds it to the session and lets it go: the server does not wait for a session that says nothing.
async function run(name, open) {
  if (session) return;
  session = new Session();
  at("error").hidden = true;
  at("hint").hidden = true;
  delays.length = 0;
  for (const id of ["delay", "delays", "server-delay"]) at(id).textContent = "–";
  let sound = null;
  try {
    state("waiting for the sound");
    sound = await open();
    state("connecting");
    if (await session.open(at("token").value)) {
      state(name);
      await sound.feed(session);
      if (session.live) state("finishing");
      session.end();
    }
    await session.ended;
  } catch (error) {
    complain(error.message);
    session.socket?.close(1000);
  } finally {
    session.stop = () => {};
    await sound?.close();
  }
  session = null;
  at("level").value = 0;
  state("ready");
}

async function microphone() {
  if (!navigator.mediaDevices) throw new Error("the browser gives the microphone to pages of https and localhost only");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const context = new AudioContext();
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    return context.close();
  };
  try {
    await context.audioWorklet.addModule("capture.js");
  } catch (error) {
    await close();
    throw error;
  }
  const hear = (session, resolve) => {
    if (!session.live || !stream.active) return resolve(); // either may have gone while the other came
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0, processorOptions: { rate: RATE } });
    session.stop = () => capture.port.postMessage("stop");
    stream.getTracks().forEach((track) => (track.onended = session.stop));
    capture.port.onmessage = ({ data }) => {
      if (data === null) return resolve();
      if (session.socket.bufferedAmount > UNSENT) {
        complain("the connection or the server is too slow for the microphone");
        return session.stop();
      }
      session.send(data.pcm);
      session.began = performance.now() - 1000 * session.sent;
      at("level").value = Math.min(1, 4 * data.loudness);
    };
    context.createMediaStreamSource(stream).connect(capture);
  };
  return { feed: (session) => new Promise((resolve) => hear(session, resolve)), close };
}

const recording = (file) => async () => {
  let sound;
  try {
    // Decodes what the browser can play, at the rate of the context.
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is no recording that this browser can play`);
  }
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((sample, index) => (mono[index] += sample / sound.numberOfChannels));
  }
  return { feed: (session) => read(session, mono), close: () => {} };
};

async function read(session, mono) {
  const slow = at("real-time").checked;
  const began = performance.now();
  if (slow) session.began = began;
  const piece = Math.round(PIECE * RATE);
  for (let begin = 0; begin < mono.length && session.live; begin += piece) {
    const samples = mono.subarray(begin, begin + piece);
    // A piece is there when its last sample has been spoken.
    if (slow) await wait(began + (1000 * (begin + samples.length)) / RATE - performance.now());
    while (session.live && session.socket.bufferedAmount > UNSENT) await wait(20);
    session.send(toPcm(samples));
    const loudness = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
    at("level").value = Math.min(1, 4 * loudness);
  }
}

const listenTo = (file) => file && run("reading", recording(file));

at("microphone").onclick = () => (session ? session.stop() : run("listening", microphone));
at("choose").onclick = () => at("file").click();
at("file").onchange = () => {
  listenTo(at("file").files[0]);
  at("file").value = "";
};
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  listenTo(event.dataTransfer.files[0]);
});
at("token").value = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
at("access").open = at("token").value !== "";
state("ready");
