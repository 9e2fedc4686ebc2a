"""The nano AST's training corpus: synthesised words and sentences, real read speech and procedural sounds, as log mels.

None of the benchmark recordings (fsdd, arabic_speech_commands, esc10, coffee_intents) is in it, nor the words and the
valid and test voices of the quickstart's task.
"""

import csv
import gzip
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sounds import MAKERS, make_sound
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from mambavox.data import synth
from mambavox.data.audio import read_audio
from mambavox.errors import ConfigError

NUM_MEL_BINS = 64
HOP = 160
FLOOR = float(np.log(1.192092955078125e-07))
"""Log mel energy of digital silence: the feature extractor's floor."""

WORD, SENTENCE, REAL, SOUND = range(4)
SILENCE, UNKNOWN = 0, 255
"""Phone numbers of frames without speech, and of frames whose phone nobody knows."""

LANGUAGES = {
    **{"ar": "ar", "ca": "ca", "cs": "cs", "de": "de", "es": "es", "fr": "fr-fr", "hi": "hi", "it": "it", "nl": "nl"},
    **{"pl": "pl", "pt": "pt-br", "ru": "ru", "sv": "sv", "sw": "sw", "tr": "tr"},
}
"""Language of a text -> espeak voice; English takes every accent."""
COUNTING = (
    *("cmn", "ja", "ko", "vi", "th", "id", "fi", "et", "hu", "el", "he", "fa", "ka"),
    *("ta", "bn", "ro", "uk", "sk", "da", "nb", "is", "eu", "cy", "ga", "lv"),
)
"""Languages of which only the numbers are spoken (no text at hand, or a script that espeak-ng reads badly)."""
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DRINKS = ["americano", "cappuccino", "coffee", "drip", "espresso", "house", "iced", "latte", "mocha"]
ROBOTS = re.compile("robo|Robo|whisper|Demonic|croak|Tweaky|serious|fast|Storm|announcer|Anxious|klatt")


@dataclass
class Clip:
    """What to synthesise or read; ids are places in the corpus's class lists, -1 is none."""

    kind: int
    seed: tuple[int, int]
    text: str = ""
    voice: str = ""
    variant: str = ""
    path: str = ""
    sound: int = -1
    word: str = ""
    language: str = ""
    speaker: str = ""


@dataclass
class Corpus:
    """Features of all clips end to end, and their labels.

    Attributes:
        features: ``(frames, 64)`` float16 natural-log mel energies, 10 ms a frame.
        phones: ``(frames,)`` phone number of each frame.
        starts: ``(clips + 1,)`` first frame of each clip.
        kinds: ``(clips,)`` WORD, SENTENCE, REAL or SOUND.
        labels: for word, language, speaker and sound the ``(clips,)`` class numbers, -1 where there is none.
        numbers: ``(clips, 2)`` rate and pitch of the sounds in octaves, scaled to about -1..1; NaN where there is none.
        classes: for every label and for the phones the names of the classes.
    """

    features: Tensor
    phones: Tensor
    starts: Tensor
    kinds: Tensor
    labels: dict[str, Tensor]
    numbers: Tensor
    classes: dict[str, list[str]] = field(default_factory=dict)


@cache
def _filters() -> tuple[Tensor, Tensor]:
    filters = mel_filter_bank(257, NUM_MEL_BINS, 20, 8000, 16_000, None, "kaldi", triangularize_in_mel_space=True)
    return torch.from_numpy(filters).float(), torch.hann_window(400, periodic=False)


def log_mel(waveform: NDArray[np.float32]) -> Tensor:
    """``ASTFeatureExtractor``'s features before normalisation, many times faster: ``(frames, 64)``."""
    filters, window = _filters()
    frames = torch.from_numpy(waveform).unfold(0, 400, HOP)
    frames = frames - frames.mean(1, keepdim=True)
    frames = torch.cat([frames[:, :1] * (1 - 0.97), frames[:, 1:] - 0.97 * frames[:, :-1]], 1)
    power = torch.fft.rfft(frames * window, 512).abs() ** 2
    return torch.log((power @ filters).clamp_min(1.192092955078125e-07))


def speakers() -> list[str]:
    """Voice variants to train with: those that sound human, less the quickstart's valid and test speakers."""
    kept_out = {*synth.SPEAKERS["valid"], *synth.SPEAKERS["test"]}
    # steph2 is a near twin of steph.
    twins = {name for name in synth.variants() if name[:-1] in kept_out}
    return [name for name in synth.variants() if name not in kept_out | twins and not ROBOTS.search(name)]


def _sentences(texts: Path, language: str) -> list[str]:
    with (texts / f"{language}.tsv").open(encoding="utf-8") as file:
        return [row[2] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def _vocabulary(sentences: list[str], count: int) -> list[str]:
    kept_out = {*synth.COMMANDS, *DIGITS, *DRINKS}
    words = Counter(word for line in sentences for word in re.findall(r"[^\W\d_]{3,}", line.lower()))
    return [word for word, _ in sorted(words.items(), key=lambda pair: (-pair[1], pair[0])) if word not in kept_out][
        :count
    ]


def _spoken(data: Path, seed: int, scale: float) -> Iterator[Clip]:
    """Words and sentences to synthesise; every clip draws its own voice variant."""
    rng, variants = np.random.default_rng(seed), speakers()
    number = 0

    def clip(kind: int, text: str, language: str, voices: tuple[str, ...], word: str = "") -> Clip:
        nonlocal number
        number += 1
        voice, variant = str(rng.choice(voices)), str(rng.choice(variants))
        return Clip(
            kind, (seed, number), text, voice, variant, word=word, language=language, speaker=f"espeak {variant}"
        )

    english = _sentences(data / "texts", "en")
    with gzip.open(data / "texts" / "cmudict.txt.gz", "rt", encoding="latin-1") as file:
        dictionary = sorted({line.split()[0].lower() for line in file if re.match(r"[A-Z]{4,10} 1 ", line)})
    vocabulary = _vocabulary(english, 300)
    rare = [str(word) for word in rng.choice(dictionary, 400, replace=False)]
    vocabulary += _vocabulary([" ".join(rare)], 250)
    for word in dict.fromkeys(vocabulary):
        for _ in range(max(2, round(18 * scale))):
            yield clip(WORD, word, "en", synth.ACCENTS, f"en {word}")
    for language, voice in LANGUAGES.items():
        sentences = _sentences(data / "texts", language)
        for word in _vocabulary(sentences, 40):
            for _ in range(max(2, round(12 * scale))):
                yield clip(WORD, word, language, (voice,), f"{language} {word}")
        for line in rng.permutation(sentences)[: round(60 * scale)]:
            yield clip(SENTENCE, " ".join(line.split()[: int(rng.integers(4, 13))]), language, (voice,))
    for language in COUNTING:
        for value in (11, 12, 15, 18, 20, 30, 40, 100):
            for _ in range(max(2, round(10 * scale))):
                yield clip(WORD, str(value), language, (language,), f"{language} {value}")
    for line in rng.permutation(english)[: round(600 * scale)]:
        yield clip(SENTENCE, " ".join(line.split()[: int(rng.integers(4, 13))]), "en", synth.ACCENTS)


def _recorded(data: Path, seed: int) -> Iterator[Clip]:
    """Real speech. Left out: barista commands (a benchmark), Mandarin (CC BY-SA), all but the training splits."""
    for pack in ("ssl_speech", "librispeech_subset", "multilingual_asr"):
        for line in (data / pack / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("source") == "intent" or row["language"] == "zh" or row.get("split", "train") != "train":
                continue
            text = row.get("text") or ""
            word = f"wake {text}" if row.get("source") == "wake" else ""
            path, speaker = str(data / pack / row["path"]), row["speaker"] or ""
            yield Clip(REAL, (seed, 0), path=path, word=word, language=row["language"], speaker=speaker)


def _sounds(seed: int, scale: float) -> Iterator[Clip]:
    for sound in range(len(MAKERS)):
        for number in range(max(2, round(110 * scale))):
            yield Clip(SOUND, (seed, 1_000_000 + 1000 * sound + number), sound=sound)


def _phone_name(symbol: str) -> str:
    """A phone without stress, length and other marks, so that languages share it."""
    return "".join(c for c in unicodedata.normalize("NFD", symbol) if unicodedata.category(c) in ("Ll", "Lo"))


def _render(clip: Clip) -> tuple[NDArray[np.float16], list[tuple[str, float]], float, float] | None:
    """Features, phones (name and first frame), rate and pitch of one clip; None where espeak cannot say it."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(clip.seed)
    rate = pitch = float("nan")
    phones: list[tuple[str, float]] = []
    if clip.kind == REAL:
        waveform = read_audio(clip.path)
    elif clip.kind == SOUND:
        waveform, rate, pitch = make_sound(clip.sound, rng, 5.0)
    else:
        speed, tone, liveliness = (int(rng.integers(low, high)) for low, high in ((100, 260), (10, 90), (20, 90)))
        try:
            waveform, spoken = synth.synthesizer().synthesize(
                clip.text, clip.voice, clip.variant, speed, tone, liveliness
            )
        except ConfigError:
            return None
        last = waveform.size / synth.SAMPLING_RATE
        starts = [phone.start for phone in spoken] + [last]
        for phone, end in zip(spoken, starts[1:], strict=True):
            phones.append((_phone_name(phone.symbol), phone.start * 100))
            if end - phone.start > 0.35:
                phones.append(("", phone.start * 100 + 35))
        loud = np.flatnonzero(np.abs(waveform) > 0.005)
        first, end = max(0, loud[0] - 800), loud[-1] + 800
        waveform, phones = waveform[first:end], [(name, frame - first / HOP) for name, frame in phones]
    if waveform.size < 1600:
        return None
    return log_mel(waveform).half().numpy(), phones, rate, pitch


def build(data: Path, seed: int, scale: float) -> Corpus:
    """Synthesise and read everything.

    Args:
        data: the folder with ``texts``, ``ssl_speech``, ``librispeech_subset`` and ``multilingual_asr``.
        seed: of voices, rates, pitches and sounds.
        scale: size of the synthesised part; 1 is the published recipe.
    """
    clips = [*_spoken(data, seed, scale), *_recorded(data, seed), *_sounds(seed, scale)]
    with ProcessPoolExecutor(2) as pool:
        rendered = list(track(pool.map(_render, clips, chunksize=64), "corpus", total=len(clips)))
    pairs = [(clip, result) for clip, result in zip(clips, rendered, strict=True) if result is not None]
    classes = {
        name: sorted({getattr(clip, name) for clip, _ in pairs} - {""}) for name in ("word", "language", "speaker")
    }
    counts = Counter(name for _, result in pairs for name, _ in result[1])
    classes["phone"] = ["", *sorted(name for name, count in counts.items() if name and count >= 150)]
    numbers = {name: number for number, name in enumerate(classes["phone"])}
    phones = []
    for clip, (features, spoken, _, _) in pairs:
        frames = np.full(len(features), UNKNOWN if clip.kind == REAL else SILENCE, np.uint8)
        # Frame t covers 25 ms from 10 t ms on, so a phone starts to show a frame before its own start.
        for name, frame in spoken:
            frames[max(0, round(frame) - 1) :] = numbers.get(name, UNKNOWN)
        phones.append(frames)
    labels = {
        name: torch.tensor([classes[name].index(value) if (value := getattr(clip, name)) else -1 for clip, _ in pairs])
        for name in ("word", "language", "speaker")
    }
    labels["sound"] = torch.tensor([clip.sound for clip, _ in pairs])
    classes["sound"] = [maker.__name__ for maker in MAKERS]
    octaves = np.log2(np.array([result[2:] for _, result in pairs]) / (3.0, 700.0)) / 4
    lengths = [len(result[0]) for _, result in pairs]
    return Corpus(
        features=torch.from_numpy(np.concatenate([result[0] for _, result in pairs])),
        phones=torch.from_numpy(np.concatenate(phones)),
        starts=torch.from_numpy(np.cumsum([0, *lengths])),
        kinds=torch.tensor([clip.kind for clip, _ in pairs]),
        labels=labels,
        numbers=torch.from_numpy(octaves).float(),
        classes=classes,
    )


def load_or_build(data: Path, work: Path, seed: int, scale: float) -> Corpus:
    """``build``, kept in ``work`` so that a resumed run does not speak everything again."""
    path = work / f"corpus-{seed}-{scale}.pt"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        corpus = build(data, seed, scale)
        torch.save(vars(corpus), path)
    return Corpus(**torch.load(path, mmap=True))
