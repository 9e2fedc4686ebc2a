// In the thread of the sound: the microphone as PCM at the model's rate, in pieces of 40 ms.

import { Resampler, toPcm } from "./resampler.js";

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.piece = Math.round(0.04 * rate);
    this.waiting = [];
    this.open = true;
    this.port.onmessage = () => {
      this.take(this.resampler.flush());
      this.send(this.waiting.length);
      this.port.postMessage(null); // that was all
      this.open = false;
    };
  }

  process([channels]) {
    if (this.open && channels.length) {
      const mono = new Float32Array(channels[0].length);
      for (const channel of channels) channel.forEach((sample, index) => (mono[index] += sample / channels.length));
      this.take(this.resampler.push(mono));
      while (this.waiting.length >= this.piece) this.send(this.piece);
    }
    return this.open;
  }

  take(samples) {
    for (const sample of samples) this.waiting.push(sample);
  }

  send(count) {
    const samples = this.waiting.splice(0, count);
    if (!samples.length) return;
    const loudness = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
    const pcm = toPcm(samples);
    this.port.postMessage({ pcm, loudness }, [pcm]);
  }
}

registerProcessor("capture", Capture);
