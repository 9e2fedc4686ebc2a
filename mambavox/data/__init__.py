"""Recordings and labels: reading audio, data sets, splits and checks."""

from mambavox.data.audio import SAMPLING_RATE, AudioSegment, AudioSource, Waveform, duration, read_audio, read_blocks
from mambavox.data.checks import AudioProblem, check_audio
from mambavox.data.datasets import CORPORA, SPEECH_CORPORA, Corpus
from mambavox.data.example import Example
from mambavox.data.examples import Examples, ListedExamples, recording_keys
from mambavox.data.protocol import Fold, Protocol, split_by_protocol
from mambavox.data.shards.examples import ShardedExamples
from mambavox.data.sources import find_corpus, read_examples, read_recordings
from mambavox.data.splits import Splits, make_splits, take_shots
from mambavox.data.windows import Window, cut_windows

__all__ = [
    "CORPORA",
    "SAMPLING_RATE",
    "SPEECH_CORPORA",
    "AudioProblem",
    "AudioSegment",
    "AudioSource",
    "Corpus",
    "Example",
    "Examples",
    "Fold",
    "ListedExamples",
    "Protocol",
    "ShardedExamples",
    "Splits",
    "Waveform",
    "Window",
    "check_audio",
    "cut_windows",
    "duration",
    "find_corpus",
    "make_splits",
    "read_audio",
    "read_blocks",
    "read_examples",
    "read_recordings",
    "recording_keys",
    "split_by_protocol",
    "take_shots",
]
