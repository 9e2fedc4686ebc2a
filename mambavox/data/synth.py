"""Speech synthesis with espeak-ng, and a spoken-command task made of it.

The library and its voices come with the pip package ``espeakng-loader`` (the extra ``synth``; GPL-3, so it is loaded at
run time and never a hard dependency). espeak-ng knows about 130 languages and about 100 voice variants such as ``f3``,
which stand in for speakers here. Everything is deterministic: the same arguments give the same samples in any process,
whatever was spoken before.
"""

import _ctypes
import ctypes
import difflib
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from mambavox.errors import ConfigError

SAMPLING_RATE = 16_000
"""Sampling rate of all synthesised speech, in Hz."""

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "open", "close")
"""The words of the embedded task."""

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
"""The English voices of the embedded task."""

# fmt: off
SPEAKERS = {
    "train": (
        "f1", "f2", "f4", "m1", "m2", "m3", "m5", "m7", "Alex", "Alicia", "Andy", "Denis", "Diogo", "Gene",
        "Henrique", "Hugo", "Lee", "Mario", "Michael", "Nguyen", "adam", "antonio", "belinda", "benjamin",
        "boris", "david", "ed", "gustave", "ian", "john", "linda", "marcelo", "max", "pablo", "paul",
        "pedro", "robert", "sandro", "shelby",
    ),
    "valid": ("f3", "m4", "Andrea", "Jacky", "anika", "iven", "miguel", "quincy", "victor", "zac"),
    "test": (
        "f5", "m6", "m8", "Annie", "Marco", "Mike", "aunty", "edward", "kaukovalta", "michel", "norbert",
        "rob", "steph", "travis",
    ),
}
# fmt: on
"""Voice variants (pseudo-speakers) of the embedded task by split; the splits share none."""

NOISES = {"white": 0.0, "pink": 1.0, "brown": 2.0, "blue": -1.0}
"""Noise colours by exponent ``k``: power falls as ``1 / frequency ** k``."""

_UNSTEADY = ("Reed", "caleb")
"""Variants that speak a little differently each time: espeak-ng reads uninitialised memory for them."""

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 0x0001, 0x0002, 0x8000
_UTF8 = 1
_EVENT_LIST_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7


class _Voice(ctypes.Structure):
    """``espeak_VOICE`` of espeak-ng's ``speak_lib.h``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


class _Event(ctypes.Structure):
    """``espeak_EVENT``; ``id`` is a union of a number, a pointer and eight characters."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Phone:
    """One phone of synthesised speech: its IPA symbol and its start in seconds."""

    symbol: str
    start: float


@dataclass(frozen=True)
class WordStart:
    """A word of synthesised speech: its first character in the text and its start in seconds.

    espeak-ng runs some short words into one, such as *in the*: of these it tells the first alone.
    """

    text: str
    position: int
    start: float


class Synthesizer:
    """espeak-ng, loaded once. espeak keeps its state per process, so use ``synthesizer()`` and not the class.

    Raises:
        ConfigError: the extra ``synth`` is not installed, or espeak-ng does not find its voices.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ConfigError("speech synthesis needs espeak-ng: pip install 'mambavox[synth]'") from error
        self._path = espeakng_loader.get_library_path()
        self._data = espeakng_loader.get_data_path()
        self._lock = threading.Lock()
        self._chunks: list[NDArray[np.int16]] = []
        self._phones: list[Phone] = []
        self._words: list[tuple[int, int, float]] = []  # first character from 1, characters, start
        # ctypes frees a callback that nobody holds, and espeak would call into freed memory.
        self._callback = _CALLBACK(self._receive)
        self._library: ctypes.CDLL | None = None
        self._native_rate = 0
        library = self._load()
        self._voices = self._list(library, "")
        self._variants = self._list(library, "variant")

    def _load(self) -> ctypes.CDLL:
        """Load the library afresh: pitch flutter, breath noise and filters live on in its static memory otherwise."""
        if self._library is not None:
            self._library.espeak_Terminate()
            _unload(self._library)
        library = ctypes.CDLL(self._path)
        options = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
        self._native_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, self._data.encode(), options)
        if self._native_rate <= 0:
            raise ConfigError(f"espeak-ng finds no voices in {self._data}; reinstall espeakng-loader in a shorter path")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(self._callback)
        self._library = library
        return library

    @staticmethod
    def _list(library: ctypes.CDLL, language: str) -> dict[str, str]:
        """Codes of voices (or of variants) -> espeak's own identifier."""
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        wanted = ctypes.create_string_buffer(language.encode())
        spec = _Voice(languages=ctypes.addressof(wanted)) if language else None
        found = library.espeak_ListVoices(ctypes.byref(spec) if spec else None)
        codes: dict[str, str] = {}
        for entry in iter(found):
            if not entry:
                break
            identifier = entry.contents.identifier.decode()
            if identifier.startswith("mb/") or identifier.removeprefix("!v/") in _UNSTEADY:
                continue
            if identifier.startswith("!v/"):
                codes[identifier.removeprefix("!v/")] = identifier
            else:
                # The list opens with a priority byte, then the language code.
                codes[ctypes.string_at(entry.contents.languages + 1).decode()] = identifier
        return dict(sorted(codes.items()))

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]"
    ) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for event in iter(events):
            if event.type == _EVENT_LIST_END:
                break
            if event.type == _EVENT_WORD:
                self._words.append((event.text_position, event.length, event.audio_position / 1000))
            if event.type == _EVENT_PHONEME and event.id:
                self._phones.append(Phone(event.id.decode(errors="ignore"), event.audio_position / 1000))
        return 0

    def voices(self) -> tuple[str, ...]:
        """Codes of the languages and accents, such as ``en-us`` or ``sw``."""
        return tuple(self._voices)

    def variants(self) -> tuple[str, ...]:
        """Names of the voice variants (pseudo-speakers), such as ``f3`` or ``Alex``."""
        return tuple(self._variants)

    def synthesize(
        self,
        text: str,
        voice: str = "en-us",
        variant: str | None = None,
        rate: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
    ) -> tuple[NDArray[np.float32], list[Phone]]:
        """Speak a text.

        Args:
            text: what to say.
            voice: language code, one of ``voices()``.
            variant: pseudo-speaker, one of ``variants()``; None is the voice's own.
            rate: words per minute, 80 to 450.
            pitch: 0 (low) to 99 (high).
            pitch_range: 0 (monotone) to 99 (lively).

        Returns:
            Waveform ``(samples,)`` in -1..1 at 16 kHz, and its phones in order.

        Raises:
            ConfigError: an unknown voice or variant, a number out of its range, or a text without speech in it.
        """
        waveform, phones, _ = self._speak(text, voice, variant, rate, pitch, pitch_range)
        return waveform, phones

    def synthesize_words(
        self, text: str, voice: str = "en-us", variant: str | None = None, rate: int = 175, pitch: int = 50
    ) -> tuple[NDArray[np.float32], list[Phone], list[WordStart]]:
        """Speak a text and tell when each word begins; arguments and errors are those of :meth:`synthesize`.

        Returns:
            Waveform ``(samples,)`` in -1..1 at 16 kHz, its phones and its words in order.
        """
        return self._speak(text, voice, variant, rate, pitch, 50)

    def _speak(
        self, text: str, voice: str, variant: str | None, rate: int, pitch: int, pitch_range: int
    ) -> tuple[NDArray[np.float32], list[Phone], list[WordStart]]:
        _check_known("voice", voice, self._voices)
        if variant is not None:
            _check_known("variant", variant, self._variants)
        for name, value, low, high in (
            ("rate", rate, 80, 450),
            ("pitch", pitch, 0, 99),
            ("pitch_range", pitch_range, 0, 99),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name}={value} is out of range; expected {low} to {high}")
        # By identifier: some codes in espeak's own list, en-gb among them, are no names that it takes.
        name = self._voices[voice] + ("" if variant is None else f"+{variant}")
        data = text.encode()
        with self._lock:
            self._chunks, self._phones, self._words = [], [], []
            library = self._load()
            if library.espeak_SetVoiceByName(name.encode()) != 0:
                raise ConfigError(f"espeak-ng cannot load the voice {voice!r} ({name}); take another one of voices()")
            for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
                library.espeak_SetParameter(parameter, value, 0)
            library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, _UTF8, None, None)
            library.espeak_Synchronize()
            chunks, phones, words = self._chunks, self._phones, self._words
        if not chunks or not phones:
            raise ConfigError(f"espeak-ng finds nothing to say in {text!r} with the voice {voice!r}")
        waveform = np.concatenate(chunks).astype(np.float32) / 32768
        starts = [WordStart(text[first - 1 : first - 1 + size], first - 1, start) for first, size, start in words]
        return soxr.resample(waveform, self._native_rate, SAMPLING_RATE).astype(np.float32), phones, starts


def _unload(library: ctypes.CDLL) -> None:
    """Give a library's memory back to the system; ctypes itself never does."""
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _check_known(kind: str, given: str, known: dict[str, str]) -> None:
    if given not in known:
        near = difflib.get_close_matches(given, known, n=5, cutoff=0.3) or list(known)[:5]
        raise ConfigError(f"no {kind} is called {given!r}; near ones: {', '.join(near)} ({len(known)} in all)")


@cache
def synthesizer() -> Synthesizer:
    """The process's one ``Synthesizer``.

    Raises:
        ConfigError: the extra ``synth`` is not installed.
    """
    return Synthesizer()


def synthesize(
    text: str, voice: str = "en-us", variant: str | None = None, rate: int = 175, pitch: int = 50
) -> NDArray[np.float32]:
    """Speak a text; the arguments and errors are those of ``Synthesizer.synthesize``.

    Returns:
        Waveform ``(samples,)`` in -1..1 at 16 kHz.
    """
    return synthesizer().synthesize(text, voice, variant, rate, pitch)[0]


def voices() -> tuple[str, ...]:
    """Codes of the languages and accents that ``synthesize`` speaks."""
    return synthesizer().voices()


def variants() -> tuple[str, ...]:
    """Names of the voice variants (pseudo-speakers) that ``synthesize`` takes."""
    return synthesizer().variants()


def trim_silence(waveform: NDArray[np.float32], threshold: float = 0.005) -> NDArray[np.float32]:
    """Cut what lies before the first and after the last sample above the threshold (amplitude, 0 to 1)."""
    loud = np.flatnonzero(np.abs(waveform) > threshold)
    return waveform[loud[0] : loud[-1] + 1] if loud.size else waveform[:0]


def colored_noise(samples: int, exponent: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian noise with power ``1 / frequency ** exponent``, root mean square 1.

    Args:
        samples: its length.
        exponent: 0 is white, 1 pink, 2 brown, -1 blue.
        generator: where the randomness comes from.

    Returns:
        ``(samples,)``.
    """
    # A length that is not a product of small primes makes the transform many times slower.
    size = 1 << max(4, (samples - 1).bit_length())
    spectrum = np.fft.rfft(generator.standard_normal(size))
    frequency = np.arange(spectrum.size, dtype=np.float64)
    # Below 20 Hz brown noise would hold nearly all of its power where no ear and no mel filter is.
    frequency = np.maximum(frequency, 20 * size / SAMPLING_RATE)
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2), size)[:samples]
    return (noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12)).astype(np.float32)


def mix_at_snr(waveform: NDArray[np.float32], noise: NDArray[np.float32], snr: float) -> NDArray[np.float32]:
    """Add noise of the same length at a signal-to-noise ratio in dB (mean powers over the whole clip)."""
    signal_power, noise_power = float(np.mean(waveform**2)), float(np.mean(noise**2))
    gain = np.sqrt(signal_power / max(noise_power, 1e-12) * 10 ** (-snr / 10))
    return (waveform + gain * noise).astype(np.float32)


@dataclass(frozen=True)
class SpokenCommand:
    """One clip of the spoken-command task."""

    waveform: NDArray[np.float32]
    """``(samples,)`` in -1..1 at 16 kHz."""
    label: str
    """The word."""
    split: str
    """``train``, ``valid`` or ``test``."""
    voice: str
    """Accent, a code of ``voices()``."""
    speaker: str
    """Voice variant, one of ``SPEAKERS[split]``."""
    noise: str
    """Colour of the noise, a key of ``NOISES``."""
    snr: float
    """Signal-to-noise ratio in dB."""


def spoken_commands(
    words: Sequence[str] = COMMANDS,
    clips_per_word: int = 70,
    seed: int = 0,
    duration: float = 1.0,
    snr: tuple[float, float] = (0.0, 20.0),
) -> list[SpokenCommand]:
    """Synthesise a spoken-command task with speaker-disjoint splits (about 60 % train, 15 % valid, 25 % test).

    Every clip has its own pseudo-speaker, accent, rate, pitch, loudness, position, noise colour and noise level.

    Args:
        words: the classes.
        clips_per_word: clips of each class, at least 4 so that every split gets one.
        seed: the same seed gives the same clips, sample by sample.
        duration: seconds of every clip; a longer word is cut.
        snr: lowest and highest signal-to-noise ratio in dB.

    Returns:
        The clips, word by word.

    Raises:
        ConfigError: too few clips, a repeated word, no room for a word, an upside-down ratio, or no espeak-ng.
    """
    if clips_per_word < 4:
        raise ConfigError(f"clips_per_word={clips_per_word}; expected at least 4, one or more for each split")
    if len(set(words)) != len(words) or not words:
        raise ConfigError(f"words={list(words)}; expected one or more words, all different")
    if not duration > 0.2:
        raise ConfigError(f"duration={duration} s; expected more than 0.2 s, the length of a short word")
    if not snr[0] <= snr[1]:
        raise ConfigError(f"snr={snr}; expected the lower ratio first, in dB")
    tests, valids = max(1, round(0.25 * clips_per_word)), max(1, round(0.15 * clips_per_word))
    splits = ["test"] * tests + ["valid"] * valids + ["train"] * (clips_per_word - tests - valids)
    return [
        _spoken_command(word, split, np.random.default_rng((seed, number, clip)), round(duration * SAMPLING_RATE), snr)
        for number, word in enumerate(words)
        for clip, split in enumerate(splits)
    ]


def _spoken_command(
    word: str, split: str, generator: np.random.Generator, samples: int, snr_range: tuple[float, float]
) -> SpokenCommand:
    speaker, voice = str(generator.choice(SPEAKERS[split])), str(generator.choice(ACCENTS))
    rate, pitch = int(generator.integers(110, 240)), int(generator.integers(20, 80))
    speech = trim_silence(synthesizer().synthesize(word, voice, speaker, rate, pitch)[0])[:samples]
    start = int(generator.integers(0, samples - speech.size + 1))
    waveform = np.zeros(samples, np.float32)
    waveform[start : start + speech.size] = speech
    noise, snr = str(generator.choice(list(NOISES))), float(generator.uniform(*snr_range))
    waveform = mix_at_snr(waveform, colored_noise(samples, NOISES[noise], generator), snr)
    waveform *= 10 ** generator.uniform(-1.5, -0.1) / max(float(np.abs(waveform).max()), 1e-6)
    return SpokenCommand(waveform.astype(np.float32), word, split, voice, speaker, noise, round(snr, 2))


def write_spoken_commands(
    folder: Path | str,
    words: Sequence[str] = COMMANDS,
    clips_per_word: int = 70,
    seed: int = 0,
    duration: float = 1.0,
    snr: tuple[float, float] = (0.0, 20.0),
) -> Path:
    """Write ``spoken_commands`` as a data set folder: ``audio/<label>/*.flac`` and ``manifest.jsonl``.

    Args:
        folder: made where it is missing; clips already there are written again.
        words: see ``spoken_commands``, as are the others.
        clips_per_word: see ``spoken_commands``.
        seed: see ``spoken_commands``.
        duration: see ``spoken_commands``.
        snr: see ``spoken_commands``.

    Returns:
        The manifest, one JSON object a clip: path (relative to the folder), duration (seconds), label, speaker,
        language (the accent), noise, snr (dB), split.

    Raises:
        ConfigError: as ``spoken_commands``.
    """
    folder = Path(folder)
    rows = []
    for number, clip in enumerate(spoken_commands(words, clips_per_word, seed, duration, snr)):
        path = folder / "audio" / clip.label / f"{number:05d}_{clip.speaker}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip.waveform, SAMPLING_RATE, subtype="PCM_16")
        rows.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "duration": round(clip.waveform.size / SAMPLING_RATE, 4),
                "label": clip.label,
                "speaker": clip.speaker,
                "language": clip.voice,
                "noise": clip.noise,
                "snr": clip.snr,
                "split": clip.split,
            }
        )
    manifest = folder / "manifest.jsonl"
    # Last and in one piece, so that an interrupted run leaves no manifest that lists missing clips.
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest
