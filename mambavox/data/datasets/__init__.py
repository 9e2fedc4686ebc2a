"""Readers of well-known corpora, one small file each."""

from mambavox.data.datasets.corpus import Corpus
from mambavox.data.datasets.esc50 import ESC10, ESC50
from mambavox.data.datasets.fluent_speech_commands import FLUENT_SPEECH_COMMANDS
from mambavox.data.datasets.iemocap import IEMOCAP
from mambavox.data.datasets.speech_commands import SPEECH_COMMANDS
from mambavox.data.datasets.urbansound8k import URBANSOUND8K

# ESC-10 has the layout of ESC-50, after which it comes: it is only read where it is asked for by name.
CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (ESC50, ESC10, URBANSOUND8K, SPEECH_COMMANDS, FLUENT_SPEECH_COMMANDS, IEMOCAP)
}
"""Name -> corpus."""

__all__ = ["CORPORA", "Corpus"]
