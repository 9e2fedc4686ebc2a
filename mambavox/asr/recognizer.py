"""Recordings to text with a CTC model: one that `mambavox adapt --task ctc` wrote, or any of transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mambavox import assets
from mambavox.asr.decoding import HotWords, Word, greedy_search, prefix_beam_search, words_in
from mambavox.asr.model import ctc_log_probs, load_ctc_model, without_adapters
from mambavox.asr.tokenizer import Vocabulary
from mambavox.data import AudioSource, Waveform, read_audio
from mambavox.errors import AudioError, ConfigError, HostError
from mambavox.hub import backbone_under, load_adapter, load_extractor, load_tokenizer
from mambavox.runs.folder import is_run, read_run

MAX_SECONDS = 600.0
"""Longest recording that is heard as a whole."""

Search: TypeAlias = Callable[[NDArray[np.float32]], Sequence[int]]
"""Tokens of log probabilities ``(frames, tokens)``."""


@dataclass(frozen=True)
class Transcript:
    """What a recording says.

    Attributes:
        text: all words.
        words: each word with its time and confidence.
        seconds: length of the recording.
    """

    text: str
    words: tuple[Word, ...]
    seconds: float

    @property
    def confidence(self) -> float | None:
        """Mean confidence of the words; ``None`` where there are none."""
        return float(np.mean([word.confidence for word in self.words])) if self.words else None

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "text": self.text,
            "seconds": self.seconds,
            "confidence": self.confidence,
            "words": [word.to_mapping() for word in self.words],
        }


class SpeechRecognizer:
    """Transcribes recordings: ``recognizer("some.wav").text``.

    Args:
        model: gives logits; a transformers model or a PEFT model around one.
        extractor: makes the model's inputs of waveforms.
        tokenizer: of the model.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.extractor = extractor
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer)
        self.sampling_rate = int(extractor.sampling_rate)
        self.frame_seconds = float(np.prod(self.base.config.conv_stride)) / self.sampling_rate

    @property
    def base(self) -> Any:
        """The model without the adapters that may be on it; a Mamba-HuBERT or one of transformers."""
        return without_adapters(self.model)

    def check_streamable(self) -> None:
        """Make sure that the model can hear a recording before its end.

        Raises:
            HostError: it is no Mamba-HuBERT, or an adapter on it cannot be streamed.
            ConfigError: it is not causal, or its extractor normalises whole recordings.
        """
        if not hasattr(self.base, "init_streaming_state"):
            raise HostError(
                f"a {type(self.base).__name__} cannot be streamed; expected a causal Mamba-HuBERT with a CTC head, "
                "such as `mambavox adapt --task ctc` makes of one of `mambavox pretrain --preset mamba-base`"
            )
        if getattr(self.extractor, "do_normalize", False):
            raise ConfigError(
                "the model's extractor normalises each recording by its mean and variance (do_normalize), which are "
                "not known before its end; expected a model trained with do_normalize false in its "
                "preprocessor_config.json"
            )
        self.model.init_streaming_state(1)

    @classmethod
    def from_pretrained(
        cls, run: str | Path, *, backbone: str | None = None, device: str | torch.device | None = None
    ) -> "SpeechRecognizer":
        """Load a model.

        Args:
            run: folder that ``mambavox adapt --task ctc`` wrote, or any CTC model with a tokenizer: embedded name,
                folder or Hub name.
            backbone: where the run's backbone lies now, if no longer where it was.
            device: where to run; default a GPU if there is one.

        Raises:
            ConfigError: there is no such model.
            RunError: the folder holds a run of another task, or one that is not finished.
        """
        if is_run(run):
            read_run(run, ("ctc",), "mambavox transcribe")
        folder = assets.locate(str(run))
        under = backbone_under(folder, backbone)
        tokenizer = load_tokenizer(folder)
        vocabulary = Vocabulary.of(tokenizer)
        if under is not None:
            host = load_ctc_model(under, len(vocabulary.tokens), vocabulary.blank)
            model = load_adapter(host, folder)
        else:
            model = load_ctc_model(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), load_extractor(folder, "model"), tokenizer)

    def read(self, audio: AudioSource, *, max_seconds: float = MAX_SECONDS) -> Waveform:
        """A recording at the model's rate.

        Raises:
            AudioError: it cannot be read, or is longer than is heard as a whole.
        """
        waveform = read_audio(audio, self.sampling_rate)
        seconds = len(waveform) / self.sampling_rate
        if seconds > max_seconds:
            name = audio if isinstance(audio, (str, Path)) else "the recording"
            raise AudioError(
                f"{name}: is {seconds:.1f} s long and would be heard as a whole; expected at most {max_seconds:g} s. "
                "Allow more with max_seconds, if the memory suffices, or give it to mambavox.asr.long_form"
            )
        return waveform

    def __call__(
        self, audio: AudioSource, *, beam_size: int = 1, hot_words: Sequence[str] = (), hot_word_weight: float = 5.0
    ) -> Transcript:
        """Transcribe one recording.

        Args:
            audio: in any form that ``mambavox.data.read_audio`` takes.
            beam_size: texts that a beam search keeps; 1 takes the likeliest alignment, unless there are hot words.
            hot_words: expected words, in the form of the model's transcripts.
            hot_word_weight: bonus of each, in nats.

        Raises:
            AudioError: the recording cannot be read.
            ConfigError: a value does not fit.
        """
        waveform = self.read(audio)
        return self.transcribe([waveform], beam_size=beam_size, hot_words=hot_words, hot_word_weight=hot_word_weight)[0]

    def transcribe(
        self,
        waveforms: Sequence[Waveform],
        *,
        batch_size: int = 8,
        beam_size: int = 1,
        hot_words: Sequence[str] = (),
        hot_word_weight: float = 5.0,
        search: Search | None = None,
    ) -> list[Transcript]:
        """Transcribe waveforms ``(samples,)`` at the model's rate; see :meth:`__call__`.

        ``search``, such as a ``LanguageModelSearch``, takes the place of the beam search, without hot words.
        """
        found = self.search(beam_size=beam_size, hot_words=hot_words, hot_word_weight=hot_word_weight, search=search)
        transcripts = []
        for waveform, log_probs in zip(
            waveforms, ctc_log_probs(self.model, self.extractor, waveforms, batch_size), strict=True
        ):
            ids = greedy_search(log_probs, self.vocabulary.blank) if found is None else found(log_probs)
            transcripts.append(
                Transcript(
                    text=self.vocabulary.text(ids),
                    words=tuple(words_in(log_probs, ids, self.vocabulary, self.frame_seconds)),
                    seconds=len(waveform) / self.sampling_rate,
                )
            )
        return transcripts

    def search(
        self,
        *,
        beam_size: int = 1,
        hot_words: Sequence[str] = (),
        hot_word_weight: float = 5.0,
        search: Search | None = None,
    ) -> Search | None:
        """What finds the tokens of frames, by the arguments of :meth:`transcribe`; none where that is greedy search."""
        if search is not None and hot_words:
            raise ConfigError("hot words and another search (a language model) are both given; expected one of them")
        if search is not None or (beam_size == 1 and not hot_words):
            return search
        bonus = HotWords(hot_words, self.vocabulary, hot_word_weight) if hot_words else None
        size = 16 if beam_size == 1 else beam_size  # one text has no other to be preferred to

        def best(log_probs: NDArray[np.float32]) -> Sequence[int]:
            found = prefix_beam_search(log_probs, self.vocabulary.blank, beam_size=size, token_margin=12.0, bonus=bonus)
            return found[0].ids

        return best
