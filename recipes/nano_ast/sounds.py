"""Procedural sounds, so that a backbone trained mostly on speech is not deaf to the rest of the world.

Each maker takes a random generator and the number of samples, and returns a waveform with what it knows about it:
events a second and a pitch or centre frequency in Hz (NaN where it has none).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, lfilter, sosfilt

from mambavox.data.synth import SAMPLING_RATE, colored_noise

Waveform = NDArray[np.float64]
Sound = tuple[Waveform, float, float]
NONE = math.nan


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def seconds(samples: int) -> Waveform:
    return np.arange(samples) / SAMPLING_RATE


def noise(rng: np.random.Generator, samples: int, exponent: float = 0.0) -> Waveform:
    return colored_noise(samples, exponent, rng).astype(np.float64)


def band(x: Waveform, low: float, high: float) -> Waveform:
    sections = butter(2, [max(low, 30), min(high, 7800)], "bandpass", fs=SAMPLING_RATE, output="sos")
    return np.asarray(sosfilt(sections, x))


def wander(rng: np.random.Generator, samples: int, rate: float) -> Waveform:
    """A smooth random curve of root mean square 1 that turns about ``rate`` times a second."""
    knots = rng.standard_normal(max(4, int(samples / SAMPLING_RATE * rate * 2) + 2))
    return np.interp(np.linspace(0, knots.size - 1, samples), np.arange(knots.size), knots)


def harmonics(rng: np.random.Generator, pitch: Waveform, tilt: float, formants: int = 0) -> Waveform:
    """A harmonic tone along a pitch curve in Hz; power falls as ``1 / number ** tilt`` and peaks at the formants."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    centres, mean = rng.uniform(400, 4000, formants), float(pitch.mean())
    total = np.zeros_like(pitch)
    for number in range(1, min(30, int(7500 / pitch.max())) + 1):
        peaks = sum(np.exp(-(((number * mean - centre) / 350) ** 2)) for centre in centres)
        total += (number ** -(tilt / 2)) * (0.15 + peaks if formants else 1.0) * np.sin(number * phase)
    return total


def onsets(rng: np.random.Generator, samples: int, rate: float, jitter: float) -> NDArray[np.int64]:
    """Sample numbers of events; jitter 0 is a clock, 1 is chance."""
    count = max(1, int(rate * samples / SAMPLING_RATE))
    regular = (np.arange(count) + rng.uniform()) / rate * SAMPLING_RATE
    return np.sort((regular + jitter * rng.uniform(-0.5, 0.5, count) * SAMPLING_RATE / rate).astype(np.int64) % samples)


def scatter(samples: int, starts: NDArray[np.int64], make: Callable[[], Waveform]) -> Waveform:
    total = np.zeros(samples)
    for start in starts:
        event = make()[: samples - start]
        total[start : start + event.size] += event
    return total


def decay(samples: int, constant: float) -> Waveform:
    attack = np.minimum(1.0, seconds(samples) / 0.003)
    return attack * np.exp(-seconds(samples) / constant)


def steady_noise(rng: np.random.Generator, n: int) -> Sound:
    return noise(rng, n, rng.uniform(-1, 2)), NONE, NONE


def band_noise(rng: np.random.Generator, n: int) -> Sound:
    centre = log_uniform(rng, 150, 5000)
    return band(noise(rng, n), centre / 1.25, centre * 1.25), NONE, centre


def wind(rng: np.random.Generator, n: int) -> Sound:
    centre = log_uniform(rng, 200, 1500)
    low, high = (band(noise(rng, n, 1), c / 1.5, c * 1.5) for c in (centre, 2 * centre))
    mix = 0.5 + 0.4 * np.tanh(wander(rng, n, 0.7))
    return (low * mix + high * (1 - mix)) * np.exp(0.6 * wander(rng, n, 0.5)), NONE, centre


def waves(rng: np.random.Generator, n: int) -> Sound:
    rate = log_uniform(rng, 0.1, 0.5)
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * (rate * seconds(n) + rng.uniform()))
    return noise(rng, n, rng.uniform(0.3, 1.3)) * (0.1 + swell ** rng.uniform(1, 3)), rate, NONE


def chopper(rng: np.random.Generator, n: int) -> Sound:
    rate, centre = log_uniform(rng, 5, 30), log_uniform(rng, 100, 800)
    pulse = (0.5 + 0.5 * np.sin(2 * np.pi * rate * seconds(n))) ** rng.uniform(2, 8)
    return band(noise(rng, n, 1.0), 40, centre * 2) * (0.15 + pulse), rate, centre


def rain(rng: np.random.Generator, n: int) -> Sound:
    rate, centre = log_uniform(rng, 100, 800), log_uniform(rng, 1500, 5000)
    drops = np.zeros(n)
    drops[rng.integers(0, n, int(rate * n / SAMPLING_RATE))] = rng.standard_normal(int(rate * n / SAMPLING_RATE))
    return band(drops, centre / 2, centre * 1.5) + rng.uniform(0, 0.05) * noise(rng, n, 0.3), rate, centre


def crackle(rng: np.random.Generator, n: int) -> Sound:
    rate = log_uniform(rng, 3, 40)
    make = lambda: (  # noqa: E731
        rng.exponential() * rng.standard_normal(400) * decay(400, log_uniform(rng, 0.0005, 0.006))
    )
    bed = rng.uniform(0, 0.08) * noise(rng, n, 1.5)
    return scatter(n, onsets(rng, n, rate, 1.0), make) + bed, rate, NONE


def ticks(rng: np.random.Generator, n: int) -> Sound:
    rate, centre = log_uniform(rng, 0.8, 8), log_uniform(rng, 800, 5000)
    tick = band(rng.standard_normal(800) * decay(800, log_uniform(rng, 0.001, 0.01)), centre / 1.5, centre * 1.5)
    return scatter(n, onsets(rng, n, rate, 0.02), lambda: tick * rng.uniform(0.5, 1)), rate, centre


def knocks(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = log_uniform(rng, 0.8, 6), log_uniform(rng, 60, 400)
    size = SAMPLING_RATE // 4
    thud = np.sin(2 * np.pi * pitch * seconds(size)) * decay(size, 0.04) + 0.2 * noise(rng, size, 1) * decay(size, 0.01)
    return scatter(n, onsets(rng, n, rate, rng.uniform(0, 0.4)), lambda: thud * rng.uniform(0.4, 1)), rate, pitch


def bursts(rng: np.random.Generator, n: int) -> Sound:
    rate, centre, length = log_uniform(rng, 0.4, 3), log_uniform(rng, 500, 4000), rng.uniform(0.05, 0.4)
    size = int(length * SAMPLING_RATE)
    rise = np.linspace(0, 1, size) ** rng.uniform(0.2, 4)
    make = lambda: band(noise(rng, size, 0.5), centre / 2, centre * 2) * rise * decay(size, length)  # noqa: E731
    return scatter(n, onsets(rng, n, rate, 0.5), make), rate, centre


def motor(rng: np.random.Generator, n: int) -> Sound:
    pitch = log_uniform(rng, 50, 250)
    curve = pitch * np.exp(0.15 * wander(rng, n, rng.uniform(0.3, 3)))
    rough = 1 + rng.uniform(0.1, 0.8) * wander(rng, n, 40)
    return harmonics(rng, curve, rng.uniform(0, 1.5), 3) * rough + 0.3 * noise(rng, n, 0.5), NONE, pitch


def hum(rng: np.random.Generator, n: int) -> Sound:
    pitch = log_uniform(rng, 45, 300)
    return harmonics(rng, np.full(n, pitch), rng.uniform(1, 4)), NONE, pitch


def cry(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = rng.uniform(0.6, 1.6), log_uniform(rng, 300, 650)
    phase = (rate * seconds(n) + rng.uniform()) % 1
    arch = np.sin(np.pi * np.minimum(phase / rng.uniform(0.6, 0.85), 1))
    curve = pitch * (1 + rng.uniform(0.05, 0.5) * arch) * np.exp(0.02 * wander(rng, n, 12))
    return harmonics(rng, curve, rng.uniform(0.5, 2), 3) * arch**0.5, rate, pitch


def crow(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = rng.uniform(0.25, 0.6), log_uniform(rng, 350, 900)
    size = int(rng.uniform(1.2, 2.0) * SAMPLING_RATE)
    shape = np.interp(np.linspace(0, 5, size), np.arange(6), rng.uniform(0.7, 1.5, 6))
    loud = np.interp(np.linspace(0, 7, size), np.arange(8), np.r_[0, rng.uniform(0.1, 1, 6), 0])
    call = harmonics(rng, pitch * shape, rng.uniform(0, 1.5), 2) * loud
    return scatter(n, onsets(rng, n, rate, 0.3), lambda: call), rate, pitch


def bark(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch, size = log_uniform(rng, 0.5, 4), log_uniform(rng, 150, 800), int(rng.uniform(0.1, 0.3) * SAMPLING_RATE)
    bend = 1 + rng.uniform(0, 0.6) * np.sin(np.pi * np.linspace(0, 1, size))
    yelp = harmonics(rng, pitch * bend, rng.uniform(0, 1.5), 2) + rng.uniform(0.2, 2) * noise(rng, size, 0.5)
    yelp *= np.hanning(size)
    return scatter(n, onsets(rng, n, rate, 0.6), lambda: yelp * rng.uniform(0.6, 1)), rate, pitch


def chirps(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch, size = (
        log_uniform(rng, 1.5, 12),
        log_uniform(rng, 1500, 6000),
        int(rng.uniform(0.03, 0.12) * SAMPLING_RATE),
    )
    sweep = pitch * np.linspace(1, rng.uniform(0.6, 1.6), size)
    call = np.sin(2 * np.pi * np.cumsum(np.minimum(sweep, 7500)) / SAMPLING_RATE) * np.hanning(size)
    return scatter(n, onsets(rng, n, rate, 0.5), lambda: call * rng.uniform(0.3, 1)), rate, pitch


def trill(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = log_uniform(rng, 8, 50), log_uniform(rng, 2000, 6500)
    gate = (0.5 + 0.5 * np.sin(2 * np.pi * rate * seconds(n))) ** 3 * (0.2 + (wander(rng, n, 1.5) > -0.5))
    return np.sin(2 * np.pi * pitch * seconds(n)) * gate, rate, pitch


def tone(rng: np.random.Generator, n: int) -> Sound:
    pitch = log_uniform(rng, 80, 6000)
    return np.sin(2 * np.pi * pitch * seconds(n)), NONE, pitch


def beeps(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = log_uniform(rng, 0.7, 8), log_uniform(rng, 300, 4000)
    gate = (rate * seconds(n) + rng.uniform()) % 1 < rng.uniform(0.2, 0.7)
    return np.sin(2 * np.pi * pitch * seconds(n)) * gate, rate, pitch


def siren(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = log_uniform(rng, 0.15, 6), log_uniform(rng, 400, 2000)
    curve = pitch * 2 ** (rng.uniform(0.2, 0.8) * np.sin(2 * np.pi * rate * seconds(n) + rng.uniform(0, 6)))
    return harmonics(rng, curve, rng.uniform(1, 4)), rate, pitch


def glide(rng: np.random.Generator, n: int) -> Sound:
    low, high = log_uniform(rng, 100, 800), log_uniform(rng, 1000, 7000)
    start, end = (low, high) if rng.uniform() < 0.5 else (high, low)
    phase = 2 * np.pi * np.cumsum(np.geomspace(start, end, n)) / SAMPLING_RATE
    return np.sin(phase), NONE, math.sqrt(low * high)


def bells(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch, size = log_uniform(rng, 0.5, 4), log_uniform(rng, 250, 2500), 2 * SAMPLING_RATE
    partials = pitch * np.array([1, 2.0, 2.76, 5.4]) * rng.uniform(0.95, 1.05, 4)
    ring = sum(np.sin(2 * np.pi * p * seconds(size)) * decay(size, rng.uniform(0.1, 0.9)) for p in partials if p < 7500)
    return scatter(n, onsets(rng, n, rate, 0.4), lambda: np.asarray(ring)), rate, pitch


def plucks(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch, size = log_uniform(rng, 1, 6), log_uniform(rng, 80, 500), SAMPLING_RATE

    def pluck() -> Waveform:
        lag = int(SAMPLING_RATE / (pitch * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12]) / 12)))
        feedback = np.zeros(lag + 2)
        feedback[0], feedback[lag], feedback[lag + 1] = 1, -0.497, -0.497
        return np.asarray(lfilter([1.0], feedback, np.r_[rng.uniform(-1, 1, lag), np.zeros(size - lag)]))

    return scatter(n, onsets(rng, n, rate, 0.1), pluck), rate, pitch


def chords(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = log_uniform(rng, 0.5, 3), log_uniform(rng, 100, 400)
    steps = rng.choice([0, 2, 3, 5, 7, 8, 10], int(rate * n / SAMPLING_RATE) + 2)
    step = steps[(rate * seconds(n)).astype(int)]
    notes = (0, rng.choice([3, 4]), 7)
    return sum(harmonics(rng, pitch * 2 ** ((step + note) / 12), 2.5) for note in notes), rate, pitch  # type: ignore[return-value]


def drums(rng: np.random.Generator, n: int) -> Sound:
    rate, size = log_uniform(rng, 1, 5), SAMPLING_RATE // 4
    kick = np.sin(2 * np.pi * np.cumsum(np.geomspace(200, 45, size)) / SAMPLING_RATE) * decay(size, 0.08)
    snare = 0.5 * noise(rng, size, 0.3) * decay(size, 0.05)
    hat = 0.2 * noise(rng, size, -1) * decay(size, 0.02)
    parts = ((kick, 1.0), (snare, 0.5), (hat, 2.0))
    return sum(scatter(n, onsets(rng, n, rate * speed, 0.0), lambda h=hit: h) for hit, speed in parts), rate, NONE  # type: ignore[misc,return-value]


def bubbles(rng: np.random.Generator, n: int) -> Sound:
    rate, pitch = log_uniform(rng, 4, 40), log_uniform(rng, 300, 1500)

    def bubble() -> Waveform:
        size = int(rng.uniform(0.02, 0.08) * SAMPLING_RATE)
        curve = pitch * rng.uniform(0.7, 1.6) * np.linspace(1, rng.uniform(1.1, 2), size)
        return rng.uniform(0.2, 1) * np.sin(2 * np.pi * np.cumsum(curve) / SAMPLING_RATE) * decay(size, 0.02)

    return scatter(n, onsets(rng, n, rate, 1.0), bubble), rate, pitch


MAKERS = (
    *(
        steady_noise,
        band_noise,
        wind,
        waves,
        chopper,
        rain,
        crackle,
        ticks,
        knocks,
        bursts,
        motor,
        hum,
        cry,
        crow,
        bark,
    ),
    *(chirps, trill, tone, beeps, siren, glide, bells, plucks, chords, drums, bubbles),
)


def make_sound(kind: int, rng: np.random.Generator, duration: float) -> tuple[NDArray[np.float32], float, float]:
    """Render one sound of a kind (a place in ``MAKERS``) with a random level and a faint noise floor."""
    samples = round(duration * SAMPLING_RATE)
    waveform, rate, pitch = MAKERS[kind](rng, samples)
    waveform = waveform / max(float(np.abs(waveform).max()), 1e-9) * 10 ** rng.uniform(-1.2, -0.05)
    waveform = waveform + 10 ** rng.uniform(-4.5, -2) * noise(rng, samples, rng.uniform(0, 1.5))
    return waveform.astype(np.float32), rate, pitch
