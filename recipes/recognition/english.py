"""What the English recognisers hear: phrases of two synthesisers, and real readings, each in many tempos and rooms."""

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from speech import RATE, Texts

from mambavox.asr.text import normalize_text
from mambavox.data import Waveform, read_audio
from mambavox.data.synth import ACCENTS, SPEAKERS, colored_noise, mix_at_snr, synthesizer, trim_silence
from mambavox.errors import ConfigError

PHRASES = {"train": 16_000, "test_synth": 600}
"""Synthesised ones of a part."""
FLITE_VOICES = ("awb", "kal16", "rms", "slt")
"""Voices of flite, three of them made of a speaker's recordings; every other phrase is theirs, in both parts."""
READINGS = 6
"""Alterations of each real reading."""
WAKE_WORDS = 4
"""One in so many recordings of wake words is heard: there are many of few words."""
MOST_WORDS = 14
MOST_SECONDS = 16.0


def corpus(data: Path, folder: Path) -> list[dict[str, str]]:
    """Write what is heard, and list it: ``path``, ``text``, ``split`` and ``source`` of each recording.

    Args:
        data: folder of the recordings and texts.
        folder: where to write; what is there already stays.
    """
    rows = []
    libri, ssl = _rows(data / "librispeech_subset"), _rows(data / "ssl_speech")
    for row in libri:
        if row["split"] in ("valid", "test_other"):
            path = data / "librispeech_subset" / row["path"]
            rows.append(_row(path, row["text"], row["split"], "librispeech"))
    readings = [(data / "librispeech_subset" / row["path"], row["text"]) for row in libri if row["split"] == "train"]
    # Transcribed English of speakers that are in no other folder.
    english = [row for row in ssl if row["language"] == "en" and row["text"]]
    readings += [(data / "ssl_speech" / row["path"], row["text"]) for row in english if row["source"] == "libri"]
    words = [row for row in english if row["source"] == "wake"][::WAKE_WORDS]
    for number, split in enumerate(PHRASES):
        texts = read_texts(data / "texts", [] if split != "train" else [text for _, text in readings], split)
        for index, (text, waveform) in zip(range(PHRASES[split]), phrases(texts, split, 1000 + number), strict=False):
            path = folder / split / f"{index:05d}.flac"
            _write(path, waveform)
            rows.append(_row(path, text, split, "flite" if index % 2 else "espeak-ng"))
    wakes = [(data / "ssl_speech" / row["path"], row["text"]) for row in words]
    for source, recordings, times in (("librispeech", readings, READINGS), ("wake words", wakes, 1)):
        for index, (original, text) in enumerate(recordings):
            for time in range(times):
                path = folder / source / f"{index:04d}-{time}.flac"
                if not path.is_file():
                    _write(path, alter(read_audio(original, RATE), np.random.default_rng((index, time))))
                rows.append(_row(path, text, "train", source))
    return rows


def read_texts(folder: Path, transcripts: list[str], split: str) -> Texts:
    """Sentences of a part, further transcripts among them; in training, the words are those of CMUdict."""
    texts = Texts.read(folder, ("en",), held_out=split != "train")
    texts = Texts({"en": texts.sentences["en"] + [normalize_text(text, "en") for text in transcripts]})
    if split == "train":
        with gzip.open(folder / "cmudict.txt.gz", "rt", encoding="utf-8") as file:
            words = {line.split()[0].lower() for line in file}
        texts.words["en"] = sorted(word for word in words if word.replace("'", "").isalpha() and word[0] != "'")
    return texts


def phrases(texts: Texts, split: str, seed: int) -> Iterator[tuple[str, Waveform]]:
    """Text and waveform of phrases without end, spoken by espeak-ng and flite in turn.

    Args:
        texts: what is said.
        split: ``"train"``, or another that espeak-ng's speakers of the training do not speak.
        seed: of all that is drawn.
    """
    generator = np.random.default_rng(seed)
    speakers = SPEAKERS["train"] + SPEAKERS["valid"] if split == "train" else SPEAKERS["test"]
    index = 0
    while True:
        text = texts.phrase("en", generator, MOST_WORDS)
        if index % 2:
            waveform = flite(text, FLITE_VOICES[int(generator.integers(len(FLITE_VOICES)))])
        else:
            try:
                waveform, _ = synthesizer().synthesize(
                    text,
                    ACCENTS[int(generator.integers(len(ACCENTS)))],
                    speakers[int(generator.integers(len(speakers)))],
                    int(generator.integers(120, 210)),
                    int(generator.integers(20, 80)),
                )
            except ConfigError:  # a text without sound
                continue
        waveform = alter(trim_silence(waveform), generator)
        if 0.2 * RATE < len(waveform) < MOST_SECONDS * RATE:
            index += 1
            yield text, waveform


def flite(text: str, voice: str) -> Waveform:
    """A text spoken by flite, ``(samples,)`` at 16 kHz."""
    command = ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"]
    try:
        output = subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise SystemExit("flite speaks half of the phrases: install it, for example by apt-get install flite") from None
    # A stream's header tells no length: what follows its 44 bytes is sound.
    return np.frombuffer(output[44:], dtype="<i2").astype(np.float32) / 32768


def alter(waveform: Waveform, generator: np.random.Generator) -> Waveform:
    """A recording as another voice in another room: tempo and pitch, colour, echo, noise and level."""
    waveform = soxr.resample(waveform, RATE, RATE * float(generator.uniform(0.87, 1.15)))
    waveform = _color(waveform, generator)
    if generator.random() < 0.3:
        waveform = _echo(waveform, generator)
    if generator.random() < 0.5:
        noise = colored_noise(len(waveform), float(generator.uniform(-0.5, 2.0)), generator)
        waveform = mix_at_snr(waveform, noise, float(generator.uniform(5.0, 35.0)))
    level = 10 ** generator.uniform(-1.2, -0.05) / max(float(np.abs(waveform).max()), 1e-6)
    return (level * waveform).astype(np.float32)


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


def _row(path: Path, text: str, split: str, source: str) -> dict[str, str]:
    return {"path": str(path.resolve()), "text": text, "split": split, "source": source}


def _write(path: Path, waveform: Waveform) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, RATE)
