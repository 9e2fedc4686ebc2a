"""Readers of well-known corpora, one small file each."""

from mambavox.data.datasets.cl_masr import CL_MASR
from mambavox.data.datasets.common_voice import COMMON_VOICE
from mambavox.data.datasets.corpus import Corpus
from mambavox.data.datasets.esc50 import ESC10, ESC50
from mambavox.data.datasets.fleurs import FLEURS
from mambavox.data.datasets.fluent_speech_commands import FLUENT_SPEECH_COMMANDS
from mambavox.data.datasets.iemocap import IEMOCAP
from mambavox.data.datasets.librispeech import LIBRISPEECH
from mambavox.data.datasets.speech_commands import SPEECH_COMMANDS
from mambavox.data.datasets.tedlium3 import TEDLIUM3, TEDLIUM3_TALKS
from mambavox.data.datasets.urbansound8k import URBANSOUND8K

# ESC-10 has the layout of ESC-50, after which it comes: it is only read where it is asked for by name.
CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (ESC50, ESC10, URBANSOUND8K, SPEECH_COMMANDS, FLUENT_SPEECH_COMMANDS, IEMOCAP)
}
"""Name -> corpus of classes."""

SPEECH_CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (LIBRISPEECH, COMMON_VOICE, CL_MASR, FLEURS, TEDLIUM3, TEDLIUM3_TALKS)
}
"""Name -> corpus of transcribed speech: examples have the field ``text`` and no class."""

__all__ = ["CORPORA", "SPEECH_CORPORA", "Corpus"]
