"""Speech whose phones are known in time: synthesised by espeak-ng, or with an alignment in its fields."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambavox.data import Example, Waveform, read_examples, synth
from mambavox.errors import ConfigError, DataError

SILENCE = "sil"
"""The phone of pauses and of the closures of stops."""

ALIGNMENT_FIELD = "alignment"
"""Field of an example with its phones as ``[phone, start, end]``, in seconds."""

_STRESS = str.maketrans("", "", "ˈˌ")
_SILENT = 10 ** (-50 / 20)  # of the loudest 10 ms of a recording
_STEP = 160  # samples, in which silence is looked for

SENTENCES = (
    "The old ferry leaves the harbour at a quarter past seven.",
    "She put three green apples and a jar of honey on the table.",
    "Nobody knows why the church bell rang twice last night.",
    "A thin layer of ice covered the pond behind our house.",
    "Please measure the length of both shelves before you go.",
    "He laughed so loudly that the whole room turned around.",
    "Yesterday we watched a huge ship sail under the bridge.",
    "The judge chose to hear five young witnesses in the morning.",
    "My uncle keeps goats, geese and two very lazy donkeys.",
    "It usually rains for weeks when the wind comes from the west.",
    "Could you show me the shortest way to the railway station?",
    "They were thinking of buying a smaller car this year.",
    "Put the blue cup back where you found it, would you?",
    "The voyage to the island took them almost eleven hours.",
    "Warm bread with butter is a pleasure on a cold day.",
    "Our teacher wrote the answer in large yellow letters.",
    "Birds were singing while he painted the garden fence.",
    "I would rather walk home than wait for another bus.",
    "The museum bought a rare map of the northern ocean.",
    "Both brothers joined the orchestra to play the violin.",
    "Without his glasses he could hardly read the small sign.",
    "A boy with a toy boat was standing near the fountain.",
    "The doctor asked her to breathe in and count to fourteen.",
    "Fresh air and a good book were all that he wished for.",
    "Some of these houses are more than six hundred years old.",
    "The engine made a strange noise and then it stopped.",
    "We should invite the neighbours to the party on Thursday.",
    "Her voice was calm, but her hands were shaking badly.",
    "There is enough food in the kitchen for all of us.",
    "Each page of the diary begins with a short weather report.",
    "The king ordered that the poorest villages pay no tax.",
    "Deep in the forest they heard the cry of an owl.",
)
"""Sentences to be spoken where none are given."""


@dataclass(frozen=True)
class PhoneSegment:
    """A phone in time.

    Attributes:
        phone: its symbol.
        start: seconds.
        end: seconds.
    """

    phone: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class AlignedSpeech:
    """A recording with its phones.

    Attributes:
        waveform: ``(samples,)`` at 16 kHz.
        phones: in order, without overlaps.
        speaker: who speaks; empty where unknown.
    """

    waveform: Waveform
    phones: tuple[PhoneSegment, ...]
    speaker: str = ""


def frame_phones(
    phones: Sequence[PhoneSegment], num_frames: int, frame_rate: float, first_center: float
) -> NDArray[np.str_]:
    """The phone at the centre of each frame.

    Args:
        phones: in order.
        num_frames: number of frames.
        frame_rate: frames a second.
        first_center: seconds at which the first frame's centre lies.

    Returns:
        ``(num_frames,)`` symbols, empty where there is no phone.
    """
    centers = first_center + np.arange(num_frames) / frame_rate
    found = np.zeros(num_frames, dtype=f"U{max((len(segment.phone) for segment in phones), default=1)}")
    for segment in phones:
        found[(centers >= segment.start) & (centers < segment.end)] = segment.phone
    return found


def synthesized_speech(
    sentences: Sequence[str] = SENTENCES,
    speakers: Sequence[str] = synth.SPEAKERS["test"],
    *,
    voice: str = "en-us",
    per_speaker: int | None = None,
    seed: int = 0,
) -> Iterator[AlignedSpeech]:
    """Sentences spoken by espeak-ng, which tells when each phone begins.

    espeak-ng has no events for pauses, and dates a stop by its burst: what is silent inside a phone is ``SILENCE``.
    Rate and pitch are drawn for each sentence.

    Args:
        sentences: what to say.
        speakers: voice variants.
        voice: language or accent.
        per_speaker: sentences of each speaker, drawn from all of them; default all.
        seed: of what is drawn.

    Raises:
        ConfigError: the extra ``synth`` is not installed, there is no such voice, or there are too few sentences.
    """
    if not sentences or (per_speaker is not None and not 1 <= per_speaker <= len(sentences)):
        raise ConfigError(f"per_speaker={per_speaker} of {len(sentences)} sentences; expected 1 or more, at most all")
    for number, speaker in enumerate(speakers):
        generator = np.random.default_rng((seed, number))
        for index in generator.permutation(len(sentences))[:per_speaker]:
            waveform, phones = synth.synthesizer().synthesize(
                sentences[index],
                voice,
                speaker,
                rate=int(generator.integers(140, 200)),
                pitch=int(generator.integers(35, 65)),
            )
            yield AlignedSpeech(waveform, segments_of(waveform, phones), speaker)


def segments_of(waveform: Waveform, phones: Sequence[synth.Phone]) -> tuple[PhoneSegment, ...]:
    """Phones of synthesised speech from their starts, with what is silent as ``SILENCE``.

    Args:
        waveform: ``(samples,)`` at 16 kHz.
        phones: as ``Synthesizer.synthesize`` gives them.

    Returns:
        Segments that cover the recording, without stress marks.
    """
    length = len(waveform) / synth.SAMPLING_RATE
    starts = [min(phone.start, length) for phone in phones]
    spoken = [
        PhoneSegment(phone.symbol.translate(_STRESS), start, end)
        for phone, (start, end) in zip(phones, pairwise([*starts, length]), strict=True)
    ]
    steps = np.pad(waveform, (0, -len(waveform) % _STEP)).reshape(-1, _STEP)
    loudness = np.sqrt((steps.astype(np.float64) ** 2).mean(axis=1))
    silent = np.concatenate([[False], loudness <= _SILENT * loudness.max(initial=0.0), [False]])
    edges = (np.flatnonzero(silent[1:] != silent[:-1]) * _STEP / synth.SAMPLING_RATE).tolist()
    pauses = [
        PhoneSegment(SILENCE, start, min(end, length)) for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    if starts and starts[0] > 0:
        spoken.insert(0, PhoneSegment(SILENCE, 0.0, starts[0]))
    found = list(pauses)
    for segment in spoken:
        start = segment.start
        for pause in pauses:
            if pause.start < segment.end and pause.end > start:
                if pause.start > start:
                    found.append(PhoneSegment(segment.phone, start, pause.start))
                start = pause.end
        if start < segment.end:
            found.append(PhoneSegment(segment.phone, start, segment.end))
    return tuple(sorted(found, key=lambda segment: segment.start))


def aligned_speech(examples: Sequence[Example], *, speaker_field: str = "speaker") -> Iterator[AlignedSpeech]:
    """Recordings whose field ``alignment`` holds their phones in time, such as a forced alignment wrote.

    Args:
        examples: the recordings.
        speaker_field: field of the speaker.

    Raises:
        DataError: a recording has no alignment, or one that is none. A list of phones without times is none.
        AudioError: a recording cannot be read.
    """
    for example in examples:
        yield AlignedSpeech(
            example.read(synth.SAMPLING_RATE), _segments(example), str(example.fields.get(speaker_field) or "")
        )


def _segments(example: Example) -> tuple[PhoneSegment, ...]:
    rows: Any = example.fields.get(ALIGNMENT_FIELD)
    if rows is None:
        unaligned = (
            "; its field 'phones' has no times: a canonical transcription is no alignment"
            if "phones" in example.fields
            else ""
        )
        raise DataError(
            f"{example.name}: has no field {ALIGNMENT_FIELD!r}{unaligned}; expected [[phone, start, end], ...] in "
            "seconds, from a forced aligner"
        )
    try:
        found = tuple(PhoneSegment(str(phone), float(start), float(end)) for phone, start, end in rows)
    except (TypeError, ValueError) as error:
        raise DataError(f"{example.name}: {ALIGNMENT_FIELD!r} is no list of [phone, start, end] in seconds") from error
    ends = [0.0, *(segment.end for segment in found)]
    for segment, before in zip(found, ends, strict=False):
        if not before <= segment.start <= segment.end:
            raise DataError(
                f"{example.name}: in {ALIGNMENT_FIELD!r} {segment.phone!r} lies at {segment.start:g} to "
                f"{segment.end:g} s, after one that ends at {before:g} s; expected rising times"
            )
    return found


def read_sentences(path: Path) -> list[str]:
    """Sentences of a text file, one a line.

    Raises:
        DataError: the file is missing or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); expected one sentence a line") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{path}: holds no sentences; expected one a line")
    return found


def quality_speech(
    *,
    data: str | None = None,
    fit_data: str | None = None,
    fit_seconds: float = 1800.0,
    texts: Path | None = None,
    voice: str = "en-us",
    per_speaker: int = 12,
    seed: int = 0,
) -> tuple[list[AlignedSpeech], list[AlignedSpeech]]:
    """Recordings to fit units to, and others to measure them on.

    Args:
        data: recordings with an alignment, to measure on; default synthesised speech.
        fit_data: recordings to fit to, whose phones need not be known; default synthesised speech of other speakers
            and sentences.
        fit_seconds: at most so much of ``fit_data``, drawn at random.
        texts: file of sentences for espeak-ng, one a line; half of them to fit to.
        voice: of espeak-ng.
        per_speaker: sentences of each of espeak-ng's speakers.
        seed: of what is drawn.

    Raises:
        ConfigError: see :func:`synthesized_speech`.
        DataError: see :func:`aligned_speech`.
        AudioError: a recording cannot be read.
    """
    sentences = SENTENCES if texts is None else read_sentences(texts)
    half = len(sentences) // 2
    if (data is None or fit_data is None) and half < per_speaker:
        raise ConfigError(
            f"per_speaker={per_speaker} and {len(sentences)} sentences, half of them to fit to; expected at least "
            f"{2 * per_speaker} sentences"
        )
    if fit_data is None:
        fit = list(
            synthesized_speech(
                sentences[:half], synth.SPEAKERS["train"], voice=voice, per_speaker=per_speaker, seed=seed
            )
        )
    else:
        examples = read_examples(fit_data, label_column=None)
        fit, seconds = [], 0.0
        for index in np.random.default_rng(seed).permutation(len(examples)):
            waveform = examples[index].read(synth.SAMPLING_RATE)
            seconds += len(waveform) / synth.SAMPLING_RATE
            if fit and seconds > fit_seconds:
                break
            fit.append(AlignedSpeech(waveform, ()))
    if data is None:
        test = list(synthesized_speech(sentences[half:], voice=voice, per_speaker=per_speaker, seed=seed))
    else:
        test = list(aligned_speech(read_examples(data, label_column=None)))
    return fit, test
