"""Recordings to text with a CTC model: one that `mambavox adapt --task ctc` wrote, or any of transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mambavox import assets
from mambavox.asr.decoding import HotWords, greedy_search, prefix_beam_search, words_in
from mambavox.asr.model import ctc_log_probs, load_ctc_model
from mambavox.asr.text import normalize_text
from mambavox.asr.tokenizer import Vocabulary
from mambavox.asr.transcript import Transcript, group_words
from mambavox.data import AudioSource, Waveform, read_audio
from mambavox.devices import find_device
from mambavox.errors import AudioError, ConfigError, HostError
from mambavox.hub import backbone_under, load_adapter, load_extractor, load_tokenizer, without_adapters
from mambavox.runs.folder import is_run, read_run

WHOLE_SECONDS = 600.0
"""Longest recording that is heard as a whole."""

Search: TypeAlias = Callable[[NDArray[np.float32]], Sequence[int]]
"""Tokens of log probabilities ``(frames, tokens)``."""


class SpeechRecognizer:
    """Transcribes recordings: ``recognizer("some.wav").text``.

    Args:
        model: gives logits; a transformers model or a PEFT model around one.
        extractor: makes the model's inputs of waveforms.
        tokenizer: of the model.
        language: code of the language of its transcripts; ``None`` where it is not known.
        normalizes: whether it learned transcripts without case and punctuation; default: whether its vocabulary has no
            capitals.
    """

    def __init__(
        self,
        model: Any,
        extractor: Any,
        tokenizer: Any,
        *,
        language: str | None = None,
        normalizes: bool | None = None,
    ) -> None:
        self.model = model.eval()
        self.extractor = extractor
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer)
        self.language = language
        capitals = any(token != token.lower() for token in self.vocabulary.tokens)
        self.normalizes = not capitals if normalizes is None else normalizes
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
            run: folder that ``mambavox adapt --task ctc`` wrote, or any CTC model with a tokenizer: an embedded model,
                a folder or a name on the Hugging Face Hub.
            backbone: where the backbone under a run's adapter lies now, if no longer where it was.
            device: where to run; default, and for ``"auto"``, a GPU if there is one.

        Raises:
            ConfigError: there is no such model or device.
            HostError: the model lacks weights, or is of a kind that has no frames of speech.
            RunError: the folder holds a run of another task, or one that is not finished.
        """
        place = find_device(device)
        config = read_run(run, ("ctc",), "mambavox transcribe") if is_run(run) else {}
        run = assets.locate(str(run))
        if Path(run).is_dir() and not (Path(run) / "tokenizer_config.json").is_file():
            raise ConfigError(
                f"{run}: holds no tokenizer (tokenizer_config.json); expected what `mambavox adapt --task ctc` "
                "wrote, or a CTC model with its tokenizer"
            )
        tokenizer = load_tokenizer(run)
        vocabulary = Vocabulary.of(tokenizer)
        under = backbone_under(run, backbone)
        if under is None:
            model = load_ctc_model(run)
        else:
            model = load_adapter(load_ctc_model(under, len(vocabulary.tokens), vocabulary.blank), run)
        return cls(
            model.to(place),
            load_extractor(run, "model"),
            tokenizer,
            language=config.get("language"),
            normalizes=config.get("normalize"),
        )

    def read(self, audio: AudioSource, *, whole_seconds: float = WHOLE_SECONDS) -> Waveform:
        """A recording at the model's rate.

        Raises:
            AudioError: it cannot be read, or is longer than is heard as a whole.
        """
        waveform = read_audio(audio, self.sampling_rate)
        seconds = len(waveform) / self.sampling_rate
        if seconds > whole_seconds:
            name = audio if isinstance(audio, (str, Path)) else "the recording"
            raise AudioError(
                f"{name}: is {seconds:.1f} s long and would be heard as a whole; expected at most {whole_seconds:g} s. "
                "Allow more with whole_seconds, if the memory suffices, or give it to mambavox.asr.long_form"
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

        Raises:
            AudioError: a waveform is empty, has values that are NaN or infinite, or is no array of sound.
            ConfigError: a value does not fit.
        """
        waveforms = [read_audio(waveform, self.sampling_rate) for waveform in waveforms]
        found = self.search(beam_size=beam_size, hot_words=hot_words, hot_word_weight=hot_word_weight, search=search)
        transcripts = []
        for waveform, log_probs in zip(
            waveforms, ctc_log_probs(self.model, self.extractor, waveforms, batch_size), strict=True
        ):
            ids = greedy_search(log_probs, self.vocabulary.blank) if found is None else found(log_probs)
            lines = group_words(words_in(log_probs, ids, self.vocabulary, self.frame_seconds))
            seconds = len(waveform) / self.sampling_rate
            transcripts.append(Transcript(self.vocabulary.text(ids), tuple(lines), seconds, self.language))
        return transcripts

    def as_transcribed(self, word: str) -> str:
        """A word in the form of the transcripts that the model has learned."""
        return normalize_text(word, self.language) if self.normalizes else word.strip()

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
