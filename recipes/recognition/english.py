"""What the English recognisers hear: phrases of two synthesisers, and real readings, each in many tempos and rooms."""

import gzip
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from speech import RATE, Spoken, Texts
from torch.utils.data import IterableDataset, get_worker_info

from mambavox.asr.text import normalize_text
from mambavox.data import read_audio
from mambavox.data.synth import ACCENTS, SPEAKERS, colored_noise, mix_at_snr, synthesizer
from mambavox.errors import ConfigError
from mambavox.units.phones import segments_of

FLITE_VOICES = ("awb", "kal16", "rms", "slt")
"""Voices of flite, three of them made of a speaker's recordings; every other phrase is theirs, in both parts."""
WAKE_WORDS = 4
"""One in so many recordings of wake words is heard: there are many of few words."""
MOST_WORDS = 14
MOST_SECONDS = 17.0


class English(IterableDataset[Spoken]):
    """Endless English: synthesised phrases, or with some probability a real recording, no two alike.

    Args:
        data: folder of the recordings and texts.
        real_share: how often a real one comes.
        seed: of all that is drawn; each worker draws from its own stream of it.
    """

    def __init__(self, data: Path, real_share: float = 0.1, seed: int = 0) -> None:
        self.real = real_speech(data)
        self.texts = read_texts(data / "texts", "train", [text for _, text in self.real])
        self.real_share, self.seed = real_share, seed

    def __iter__(self) -> Iterator[Spoken]:
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        generator, other = (np.random.default_rng((self.seed, number, stream)) for stream in range(2))
        phrases = synthesised(self.texts, SPEAKERS["train"] + SPEAKERS["valid"], other)
        while True:
            if generator.random() < self.real_share:
                path, text = self.real[int(generator.integers(len(self.real)))]
                yield alter(Spoken(read_audio(path, RATE), text, "en"), generator)
            else:
                yield next(phrases)


def held_out(data: Path, count: int) -> list[Spoken]:
    """Always the same synthesised phrases of held-out sentences; espeak-ng's speakers are not those of the training."""
    phrases = synthesised(read_texts(data / "texts", "test"), SPEAKERS["test"], np.random.default_rng(1001))
    return [next(phrases) for _ in range(count)]


def real_speech(data: Path) -> list[tuple[Path, str]]:
    """Path and transcript of the recordings that are learned from."""
    found = [
        (data / "librispeech_subset" / row["path"], row["text"])
        for row in _rows(data / "librispeech_subset")
        if row["split"] == "train"
    ]
    # Transcribed English of speakers that are in no other folder.
    english = [row for row in _rows(data / "ssl_speech") if row["language"] == "en" and row["text"]]
    readings = [row for row in english if row["source"] == "libri"]
    wake_words = [row for row in english if row["source"] == "wake"][::WAKE_WORDS]
    found += [(data / "ssl_speech" / row["path"], row["text"]) for row in readings + wake_words]
    return [(path, normalize_text(text, "en")) for path, text in found]


def read_texts(folder: Path, split: str, transcripts: Iterable[str] = ()) -> Texts:
    """Sentences of a split, further transcripts among them; in training, the words are those of CMUdict."""
    texts = Texts.read(folder, ("en",), held_out=split != "train")
    texts = Texts({"en": texts.sentences["en"] + list(transcripts)})
    if split == "train":
        with gzip.open(folder / "cmudict.txt.gz", "rt", encoding="utf-8") as file:
            words = {line.split()[0].lower() for line in file}
        texts.words["en"] = sorted(word for word in words if word.replace("'", "").isalpha() and word[0] != "'")
    return texts


def synthesised(texts: Texts, speakers: tuple[str, ...], generator: np.random.Generator) -> Iterator[Spoken]:
    """Phrases without end, spoken by espeak-ng and flite in turn, altered.

    Args:
        texts: what is said.
        speakers: of espeak-ng.
        generator: draws all.
    """
    number = 0
    while True:
        text = texts.phrase("en", generator, MOST_WORDS)
        if number % 2:
            spoken = flite(text, FLITE_VOICES[int(generator.integers(len(FLITE_VOICES)))])
        else:
            try:
                waveform, phones = synthesizer().synthesize(
                    text,
                    ACCENTS[int(generator.integers(len(ACCENTS)))],
                    speakers[int(generator.integers(len(speakers)))],
                    int(generator.integers(120, 210)),
                    int(generator.integers(20, 80)),
                )
            except ConfigError:  # a text without sound
                continue
            heard = tuple((segment.phone, segment.start, segment.end) for segment in segments_of(waveform, phones))
            spoken = Spoken(waveform, text, "en", heard)
        spoken = alter(spoken.trimmed(), generator)
        if 0.2 * RATE < len(spoken.waveform) < MOST_SECONDS * RATE:
            number += 1
            yield spoken


def flite(text: str, voice: str) -> Spoken:
    """A text spoken by flite; its phones have other names than espeak-ng's."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", file.name]
        try:
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except FileNotFoundError:
            raise SystemExit(
                "flite speaks half of the phrases: install it, for example by apt-get install flite"
            ) from None
        waveform = read_audio(file.name, RATE)
    # Such as "pau:0.184 dh:0.236": names and ends.
    ends = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", output)]
    starts = [0.0, *(end for _, end in ends)]
    return Spoken(waveform, text, "en", tuple((f"flite {n}", s, e) for (n, e), s in zip(ends, starts, strict=False)))


def alter(spoken: Spoken, generator: np.random.Generator) -> Spoken:
    """A recording as another voice in another room: tempo and pitch, colour, echo, noise and level."""
    factor = float(generator.uniform(0.87, 1.15))
    waveform = soxr.resample(spoken.waveform, RATE, RATE * factor)
    if not len(waveform):
        return spoken
    waveform = _color(waveform, generator)
    if generator.random() < 0.3:
        waveform = _echo(waveform, generator)
    if generator.random() < 0.5:
        noise = colored_noise(len(waveform), float(generator.uniform(-0.5, 2.0)), generator)
        waveform = mix_at_snr(waveform, noise, float(generator.uniform(5.0, 35.0)))
    level = 10 ** generator.uniform(-1.2, -0.05) / max(float(np.abs(waveform).max()), 1e-6)
    return replace(spoken.moved(0.0, factor), waveform=(level * waveform).astype(np.float32))


def _color(waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Up to 6 dB more or less at eight frequencies from 60 Hz to 8 kHz, and in between."""
    size = 1 << (len(waveform) - 1).bit_length()
    knots, gains = np.geomspace(60, RATE / 2, 8), generator.uniform(-6.0, 6.0, 8)
    decibels = np.interp(np.fft.rfftfreq(size, 1 / RATE), knots, gains)
    colored = np.fft.irfft(np.fft.rfft(waveform, size) * 10 ** (decibels / 20), size)
    return colored[: len(waveform)].astype(np.float32)


def _echo(waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """An exponentially fading echo of noise, which takes 0.15 to 0.6 s to lose 60 dB."""
    seconds = float(generator.uniform(0.15, 0.6))
    times = np.arange(round(seconds * RATE)) / RATE
    response = generator.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    response *= float(generator.uniform(0.2, 0.8)) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    return fftconvolve(waveform, response)[: len(waveform)].astype(np.float32)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
