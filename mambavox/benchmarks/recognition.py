"""How long words wait in streaming recognition: algorithmic latency, real-time factor, delays of tokens and words.

Sentences are synthesised, so that the times of their words are known. Each is given to the recogniser in blocks as a
microphone would give it. The clock is simulated: a block is there when its last sample has been spoken, work on it
begins then or when that on the block before has ended, and takes the time that is measured.
"""

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from mambavox.asr.live import Endpointing, LiveRecognizer
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.text import normalize_text
from mambavox.benchmarks.machine import machine_facts, working_threads
from mambavox.benchmarks.report import Report, in_words
from mambavox.data import synth
from mambavox.errors import ConfigError
from mambavox.units.phones import SENTENCES, SILENCE, segments_of

BLOCKS = (0.16, 0.32, 0.64)
"""Seconds of the blocks that are compared."""

_SPEAKERS = ("m4", "f3", "Andrea")
_SILENCE_SECONDS = 1.5  # behind a sentence, in which it ends


@dataclass(frozen=True)
class TimedWord:
    """A word that was said.

    Attributes:
        text: normalised.
        start: seconds; none where it is not known.
        end: seconds; none where it is not known.
    """

    text: str
    start: float | None
    end: float | None


@dataclass(frozen=True)
class Spoken:
    """A sentence.

    Attributes:
        waveform: ``(samples,)``, with silence behind.
        words: in order.
    """

    waveform: NDArray[np.float32]
    words: tuple[TimedWord, ...]


@dataclass
class Delays:
    """What was measured with blocks of one length, in seconds.

    Attributes:
        block: length of the blocks.
        algorithmic: the longest that a sample waits on a machine without limits: the block, and what the last frame's
            receptive field reaches beyond it.
        audio: recognised in all.
        working: in all.
        steps: work on each block.
        first_token: from the beginning of a sentence to the first letter shown.
        word: from the end of a word to when it is shown whole, of words recognised.
        final_word: the same of each sentence's last word.
        final_text: from the end of a sentence to its final text.
        words: how many were said.
        recognized: how many of them were recognised.
    """

    block: float
    algorithmic: float
    audio: float = 0.0
    working: float = 0.0
    steps: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    word: list[float] = field(default_factory=list)
    final_word: list[float] = field(default_factory=list)
    final_text: list[float] = field(default_factory=list)
    words: int = 0
    recognized: int = 0

    @property
    def real_time_factor(self) -> float:
        """Work by audio."""
        return self.working / self.audio


@dataclass(frozen=True)
class RecognitionReport(Report):
    """All figures.

    Attributes:
        facts: the machine and the settings, by name.
        rows: one for each length of blocks.
    """

    name = "recognition"

    facts: Mapping[str, Any]
    rows: Sequence[Delays]

    def markdown(self) -> str:
        """A table."""
        lines = [
            "# recognition",
            "",
            in_words(self.facts),
            "",
            "Milliseconds, median / 95th percentile; - where nothing was recognised.",
            "",
            "| block | algorithmic | work on a block | real-time factor | first token | word | final word | final text "
            "| words recognised |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            figures = (row.first_token, row.word, row.final_word, row.final_text)
            lines.append(
                f"| {row.block * 1e3:.0f} ms | {row.algorithmic * 1e3:.0f} | {_percentiles(row.steps)} "
                f"| {row.real_time_factor:.3f} | {' | '.join(map(_percentiles, figures))} "
                f"| {row.recognized} of {row.words} |"
            )
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(row), "real_time_factor": row.real_time_factor} for row in self.rows]
        return {"facts": dict(self.facts), "rows": rows}


def measure_recognition(
    recognizer: SpeechRecognizer,
    *,
    blocks: Sequence[float] = BLOCKS,
    sentences: int = 12,
    language: str = "en",
    endpointing: Endpointing | None = None,
    threads: int = 1,
    facts: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> RecognitionReport:
    """Measure a streaming recogniser of English.

    Args:
        recognizer: of a causal model.
        blocks: seconds of the blocks in which it is given sound.
        sentences: how many are spoken, by voices in turn.
        language: by whose rules words are compared.
        endpointing: when a sentence is over.
        threads: that work on the CPU.
        facts: what else the report is to say.
        console: where progress is shown.

    Raises:
        ConfigError: the extra ``synth`` is not installed, the model cannot be streamed, or a number that does not fit.
        HostError: the model cannot be streamed.
    """
    if not 1 <= sentences <= len(SENTENCES):
        raise ConfigError(f"sentences={sentences}; expected 1 to {len(SENTENCES)}")
    if not blocks or min(blocks) < recognizer.frame_seconds:
        raise ConfigError(
            f"blocks={list(blocks)} seconds; expected one or more, of a frame ({recognizer.frame_seconds:g}) at least"
        )
    LiveRecognizer(recognizer)  # refuses before anything is spoken
    spoken = [
        speak(sentence, _SPEAKERS[index % len(_SPEAKERS)], language)
        for index, sentence in enumerate(SENTENCES[:sentences])
    ]
    with working_threads(threads):
        device = next(recognizer.model.parameters()).device
        about = machine_facts(device, torch.float32)
        rows = []
        with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
            task = bar.add_task("sentences", total=len(blocks) * len(spoken))
            for block in blocks:
                row = Delays(block, block + _reach(recognizer))
                _hear(recognizer, spoken[0], Delays(block, 0.0), endpointing)  # warms up
                for sentence in spoken:
                    _hear(recognizer, sentence, row, endpointing)
                    bar.advance(task)
                rows.append(row)
    return RecognitionReport({**about, "sentences": sentences, **(facts or {})}, rows)


def speak(text: str, speaker: str | None = None, language: str = "en") -> Spoken:
    """A sentence spoken by espeak-ng, with the times of its words.

    Args:
        text: without digits, whose words are not in it.
        speaker: voice variant.
        language: by whose rules words are normalised.

    Raises:
        ConfigError: the extra ``synth`` is not installed.
    """
    waveform, phones, starts = synth.synthesizer().synthesize_words(text, variant=speaker)
    loud = [segment for segment in segments_of(waveform, phones) if segment.phone != SILENCE]
    known = {word.position: word.start for word in starts}
    positions = [index for index, letter in enumerate(text) if letter != " " and (index == 0 or text[index - 1] == " ")]
    words = []
    for index, position in enumerate(positions):
        following = positions[index + 1] if index + 1 < len(positions) else None
        limit = len(waveform) if following is None else known.get(following)
        end = None
        if limit is not None and position in known:
            # A pause behind a word is none of it.
            end = max((min(part.end, limit) for part in loud if known[position] <= part.start < limit), default=limit)
        word = normalize_text(text[position : None if following is None else following], language)
        words.append(TimedWord(word, known.get(position), end))
    silence = np.zeros(round(_SILENCE_SECONDS * synth.SAMPLING_RATE), dtype=np.float32)
    return Spoken(np.concatenate([waveform, silence]), tuple(words))


def _reach(recognizer: SpeechRecognizer) -> float:
    """Seconds by which a frame's receptive field is longer than a frame."""
    config = recognizer.base.config
    return (config.receptive_field - config.inputs_to_logits_ratio) / config.sampling_rate


def _hear(recognizer: SpeechRecognizer, spoken: Spoken, row: Delays, endpointing: Endpointing | None) -> None:
    """Recognise a sentence in blocks and add what was measured to a row."""
    live = LiveRecognizer(recognizer, endpointing)
    stream, rate = live.open(), recognizer.sampling_rate
    size, total = round(row.block * rate), len(spoken.waveform)
    ready, first = 0.0, None
    shown: dict[tuple[int, int], tuple[str, float]] = {}  # segment and place in it -> word and since when
    finals: dict[int, tuple[tuple[str, ...], float]] = {}
    cuda = next(recognizer.model.parameters()).is_cuda
    for begin in range(0, total, size):
        end = min(begin + size, total)
        start = time.perf_counter()
        last = [stream] if end == total else []
        segments = live.feed({stream: spoken.waveform[begin:end]}, last)[stream]
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        row.steps.append(seconds)
        row.working += seconds
        ready = max(end / rate, ready) + seconds
        for segment in segments:
            first = ready if first is None else first
            texts = tuple(normalize_text(word.text, "en") for word in segment.words)
            for place, text in enumerate(texts):
                if shown.get((segment.number, place), ("", 0.0))[0] != text:
                    shown[segment.number, place] = (text, ready)
            if segment.final:
                finals[segment.number] = (texts, ready)
    row.audio += total / rate
    heard = [
        (text, shown[number, place][1])
        for number, (texts, _) in sorted(finals.items())
        for place, text in enumerate(texts)
    ]
    row.words += len(spoken.words)
    said = [word.text for word in spoken.words]
    matches = difflib.SequenceMatcher(a=said, b=[text for text, _ in heard], autojunk=False).get_matching_blocks()
    times = {match.a + step: heard[match.b + step][1] for match in matches for step in range(match.size)}
    row.recognized += len(times)
    for index, since in times.items():
        ended = spoken.words[index].end
        if ended is not None:
            row.word.append(since - ended)
            if index == len(said) - 1:
                row.final_word.append(since - ended)
    begun, over = spoken.words[0].start, spoken.words[-1].end
    # Without a word recognised, a letter shown means nothing.
    if times and first is not None and begun is not None:
        row.first_token.append(first - begun)
    if times and over is not None:
        row.final_text.append(max(when for _, when in finals.values()) - over)


def _percentiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    middle, high = np.percentile(seconds, (50, 95)) * 1e3
    return f"{middle:.0f} / {high:.0f}" if middle >= 10 else f"{middle:.1f} / {high:.1f}"
