// Samples at one rate to samples at another: a windowed sinc, cut anywhere, the same result as of the whole.

const ZERO_CROSSINGS = 32; // of the sinc on each side
const PASSED = 0.92; // of the lower of both half rates

const divisor = (a, b) => (b ? divisor(b, a % b) : a);

export class Resampler {
  constructor(from, to) {
    const common = divisor(from, to);
    this.up = to / common;
    this.down = from / common;
    const cutoff = PASSED * Math.min(1, to / from);
    this.half = Math.ceil(ZERO_CROSSINGS / cutoff);
    // One filter for each place that an output sample can have between two input samples.
    this.filters = Array.from({ length: this.up }, (_, phase) => this.filter(phase / this.up, cutoff));
    this.held = new Float32Array(this.half - 1); // silence before the first sample
    this.first = 1 - this.half; // number of the first sample held
    this.next = 0; // number of the next output sample
  }

  filter(fraction, cutoff) {
    const taps = new Float32Array(2 * this.half);
    let sum = 0;
    for (let index = 0; index < taps.length; index++) {
      const distance = index - (this.half - 1) - fraction;
      const x = Math.PI * cutoff * distance;
      const place = distance / this.half;
      const window = Math.abs(place) < 1 ? 0.42 + 0.5 * Math.cos(Math.PI * place) + 0.08 * Math.cos(2 * Math.PI * place) : 0;
      taps[index] = cutoff * (x === 0 ? 1 : Math.sin(x) / x) * window;
      sum += taps[index];
    }
    return taps.map((tap) => tap / sum);
  }

  // The output samples that new samples make possible.
  push(samples) {
    const input = new Float32Array(this.held.length + samples.length);
    input.set(this.held);
    input.set(samples, this.held.length);
    const output = [];
    for (;;) {
      const begin = Math.floor((this.next * this.down) / this.up) - (this.half - 1) - this.first;
      const taps = this.filters[(this.next * this.down) % this.up];
      if (begin + taps.length > input.length) {
        const kept = Math.min(Math.max(begin, 0), input.length);
        this.held = input.slice(kept);
        this.first += kept;
        return Float32Array.from(output);
      }
      let sum = 0;
      for (let index = 0; index < taps.length; index++) sum += taps[index] * input[begin + index];
      output.push(sum);
      this.next++;
    }
  }

  // The last ones.
  flush() {
    return this.push(new Float32Array(this.half));
  }
}

// 16-bit PCM, the low byte first.
export function toPcm(samples) {
  const bytes = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, index) => {
    bytes.setInt16(2 * index, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true);
  });
  return bytes.buffer;
}
