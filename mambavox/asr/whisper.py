"""Transcripts from one loaded Whisper and any number of adapters, one a language."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from mambavox import assets
from mambavox.asr.speech_windows import SpeechDetector
from mambavox.asr.transcript import Transcript
from mambavox.asr.whisper_decoding import WhisperDecoding
from mambavox.asr.whisper_hearing import WindowHearing
from mambavox.asr.whisper_language import generation_options, known_languages, language_token, prepare_for
from mambavox.asr.whisper_long import LongForm, LongFormHearing, Recording
from mambavox.asr.whisper_window import TrimmedEncoder
from mambavox.data import AudioSource, read_audio
from mambavox.devices import find_device
from mambavox.errors import ConfigError, HostError, RunError
from mambavox.hub import (
    adapter_config,
    is_of_type,
    load_adapter,
    load_config,
    load_model,
    loading,
    quiet_transformers,
    without_adapters,
)
from mambavox.runs.config import RUN_FILE, TASK_KEY
from mambavox.runs.folder import METRICS_FILE, is_run, read_run, task_of

BASE = "__base__"
"""Name of the Whisper without an adapter."""
_OF_ROWS = ("mambadapter", "mambadapter-residual", "bottleneck", "conformer", "convpass", "moa", "lora")
"""Methods whose adapters may differ from row to row of a batch."""
AUTO = "auto"
"""As the language: the one whose transcript is the likeliest."""


@dataclass(frozen=True)
class WhisperRun:
    """What the transcriber needs to know of a finished run.

    Attributes:
        folder: of the run.
        backbone: the Whisper that was adapted.
        method: how it was adapted.
        language: code of the language; ``None`` for an English-only Whisper.
        trim_encoder: whether it encoded no more than the longest recording of a batch.
        num_beams: beams of the search.
    """

    folder: Path
    backbone: str
    method: str
    language: str | None
    trim_encoder: bool
    num_beams: int

    @classmethod
    def read(cls, run: str | Path) -> "WhisperRun":
        """Read ``run.yaml``.

        Raises:
            RunError: the folder holds no finished run of a Whisper, or ``run.yaml`` lacks a key.
        """
        config, folder = read_run(run, ("whisper",), "mambavox transcribe"), Path(run).expanduser()
        keys = [name for name in cls.__dataclass_fields__ if name != "folder"]
        if missing := [name for name in keys if name not in config]:
            raise RunError(f"{folder / RUN_FILE}: lacks {', '.join(missing)}; expected what a run of a Whisper writes")
        return cls(folder, **{name: config[name] for name in keys})


def is_whisper(name: str) -> bool:
    """Whether a name is that of a Whisper: an embedded model, a folder, or on the Hugging Face Hub."""
    return is_of_type(name, ("whisper",))


def recogniser_task(name: str, command: str) -> str:
    """Whether a recogniser is a Whisper or a CTC model.

    Args:
        name: a run folder, an embedded model, a folder, or a name on the Hugging Face Hub.
        command: that asks, for the error's text.

    Returns:
        ``"whisper"`` or ``"ctc"``.

    Raises:
        RunError: it is a run of another task, or not finished.
    """
    if is_run(name):
        return str(read_run(name, ("ctc", "whisper"), command)[TASK_KEY])
    return "whisper" if is_whisper(name) else "ctc"


def load_whisper(name: str) -> tuple[Any, Any]:
    """A Whisper in float32, and its processor.

    Args:
        name: an embedded model, a folder, or a name on the Hugging Face Hub.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
        HostError: it is no Whisper, or its checkpoint lacks weights.
    """
    kind = load_config(name).model_type
    if kind != "whisper":
        raise HostError(f"backbone {name!r} is of type {kind!r}; expected a Whisper, such as openai/whisper-small")
    with loading(name):
        processor = WhisperProcessor.from_pretrained(assets.locate(name), trust_remote_code=False)
    model = load_model(WhisperForConditionalGeneration, name)
    # Masking of the host's own would act in full fine-tuning only.
    model.config.apply_spec_augment = False
    return model, processor


class WhisperTranscriber:
    """Transcribes recordings with one Whisper, whose adapters are switched without loading anything.

    Args:
        model: a Whisper, or a ``PeftModel`` around one with an adapter for each language.
        processor: makes its inputs and reads its tokens.
        languages: code of each adapter's language by the adapter's name; a model of its own, without adapters, has the
            name ``BASE``.
        max_new_tokens: tokens that are generated for a recording, or a window of a long one, at most; default as many
            as the decoder takes.
        num_beams: beams of the search.
        mixes_languages: whether the rows of a batch may each have an adapter of their own.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        languages: Mapping[str, str | None],
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        mixes_languages: bool = False,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.languages = dict(languages)
        self.mixes_languages = mixes_languages
        self.num_beams = num_beams
        self.host = without_adapters(model)
        most = self.host.config.max_target_positions - 4
        self.max_new_tokens = most if max_new_tokens is None else min(max_new_tokens, most)
        extractor = processor.feature_extractor
        self.sampling_rate = int(extractor.sampling_rate)
        self.window = int(extractor.n_samples)

    @classmethod
    def from_pretrained(
        cls,
        *runs: str | Path,
        backbone: str | None = None,
        trim_encoder: bool | None = None,
        device: str | torch.device | None = None,
    ) -> "WhisperTranscriber":
        """Load finished runs: one of any method, or several adapters of one method on one backbone.

        Args:
            runs: folders that ``mambavox adapt --task whisper`` wrote; or one Whisper as it is: an embedded model, a
                folder or a name on the Hugging Face Hub.
            backbone: where the runs' backbone lies now, if no longer where ``run.yaml`` says.
            trim_encoder: encode no more than the longest recording of a batch; default as the runs were trained.
            device: where to run; default, and for ``"auto"``, a GPU if there is one.

        Raises:
            RunError: a folder holds no finished run of a Whisper.
            ConfigError: the backbone cannot be found, the runs do not go together, or there is no such device.
            HostError: the backbone is no Whisper.
        """
        if not runs:
            raise ConfigError(
                "no runs are given; expected at least one folder that `mambavox adapt --task whisper` wrote"
            )
        place = find_device(device)
        if len(runs) == 1 and not is_run(runs[0]) and is_whisper(str(runs[0])):
            plain, processor = load_whisper(str(runs[0]))
            return cls(_trimmed(plain.to(place), trim_encoder), processor, {BASE: None})
        known = [WhisperRun.read(run) for run in runs]
        _check_together(known)
        first = known[0]
        if first.method == "full":
            model, processor = load_whisper(str(first.folder))
            names = {BASE: first.language}
        else:
            model, processor = _adapted(known, backbone or first.backbone)
            names = {_adapter_name(run.language): run.language for run in known}
        _trimmed(without_adapters(model), first.trim_encoder if trim_encoder is None else trim_encoder)
        mixes = first.method in _OF_ROWS
        return cls(model.to(place), processor, names, num_beams=first.num_beams, mixes_languages=mixes)

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> "WhisperTranscriber":
        """Load every finished run of a Whisper in a folder, by :meth:`from_pretrained`; others are left alone.

        Raises:
            RunError: there is none.
            ConfigError: as :meth:`from_pretrained`.
        """
        finished = sorted(path.parent for path in Path(folder).expanduser().glob(f"*/{METRICS_FILE}"))
        runs = [run for run in finished if _is_whisper_run(run)]
        if not runs:
            raise RunError(
                f"{folder}: holds no finished runs of a Whisper; expected a folder with run folders in it that "
                "`mambavox adapt --task whisper` wrote"
            )
        return cls.from_pretrained(*runs, **options)

    def switch(self, language: str) -> float:
        """Let the adapter of a language act.

        Args:
            language: its code.

        Returns:
            Seconds that it took.

        Raises:
            ConfigError: there is no adapter of that language.
        """
        name, start = self.adapter_of(language), time.perf_counter()
        if self.model is not self.host:
            self.model.set_adapter(name, inference_mode=True)
        return time.perf_counter() - start

    def adapter_of(self, language: str) -> str:
        """Name of the adapter of a language.

        Raises:
            ConfigError: there is none.
        """
        wanted = language_token(language)
        if self.languages == {BASE: None} and wanted in known_languages(self.host):
            return BASE
        for name, own in self.languages.items():
            if own is not None and language_token(own) == wanted:
                return name
        if self.languages == {BASE: None}:
            known = (
                ", ".join(token[2:-2] for token in sorted(known_languages(self.host))) or "one, and is not told which"
            )
            raise ConfigError(f"language={language}; the model knows {known}")
        known = ", ".join(sorted(own for own in self.languages.values() if own)) or "none"
        raise ConfigError(f"language={language}; there are adapters of {known}")

    @torch.inference_mode()
    @quiet_transformers()
    def transcribe(
        self,
        sources: Sequence[AudioSource],
        language: str | Sequence[str] | None = None,
        *,
        timestamps: bool = False,
        batch_size: int = 16,
        decoding: WhisperDecoding | None = None,
        long_form: LongForm = "batched",
        detector: SpeechDetector | None = None,
    ) -> list[Transcript]:
        """Transcribe recordings of any length.

        What is longer than Whisper's window is heard in windows. The windows of all recordings go through the model in
        batches, which mix languages where the method can (LoRA and the methods of sublayers; in greedy search) and are
        of one language elsewhere.

        Args:
            sources: recordings in any form that ``mambavox.data.read_audio`` takes. An array without a rate counts as
                at ``sampling_rate``.
            language: code of the language, one for all recordings or one for each; ``"auto"``: that of the adapters
                under which the transcript is the likeliest, each of which is tried, and without adapters the one that
                Whisper itself detects; default that of the only adapter, or as ``"auto"`` without adapters.
            timestamps: find out when each word is said.
            batch_size: windows at a time.
            decoding: how texts are searched; default once, with ``num_beams``.
            long_form: ``"batched"``: windows are cut in pauses, or where it is quietest, and heard together;
                ``"sequential"``: each window begins where the last sentence of the one before ended, which needs
                timestamps that an adapter may have forgotten, and recordings alone are heard together.
            detector: finds speech, so that silence is not heard at all; not for ``"sequential"``.

        Raises:
            AudioError: a recording cannot be read.
            ConfigError: there is no adapter of a language, or the options do not go together.
        """
        if detector is not None and long_form == "sequential":
            raise ConfigError("voice activity detection cuts windows itself; leave out long_form=sequential")
        asked = self._languages(sources, language)
        waveforms = [read_audio(source, self.sampling_rate) for source in sources]
        if self.languages == {BASE: None}:
            asked = [None if code == AUTO else code for code in asked]
        if AUTO in asked:
            self._decide(waveforms, asked, batch_size)
        decoding = decoding or WhisperDecoding(num_beams=self.num_beams)
        # Beam search repeats the rows of a batch.
        mixed = self.mixes_languages and decoding.num_beams == 1
        long = LongFormHearing(
            WindowHearing(self.model, self.processor.tokenizer, decoding, self.max_new_tokens),
            self.processor.feature_extractor,
            batch_size=batch_size,
            batches=lambda languages, size: _batches(languages, size, mixed),
            activate=self._activate,
            timestamps=timestamps,
            detector=detector,
        )
        recordings = [Recording(waveform, code) for waveform, code in zip(waveforms, asked, strict=True)]
        return long.transcribe(recordings, long_form)

    def _activate(self, languages: Sequence[str | None]) -> list[str] | None:
        """Let the adapter of a batch act; names of the rows' adapters where these differ."""
        if len(set(languages)) > 1 and self.languages != {BASE: None}:
            return [self.adapter_of(str(code)) for code in languages]
        if languages[0] is not None:
            self.switch(languages[0])
        return None

    def _languages(self, sources: Sequence[Any], language: str | Sequence[str] | None) -> list[str | None]:
        if language is None:
            if len(self.languages) > 1:
                raise ConfigError(
                    f"there are {len(self.languages)} adapters and no language is given; expected one of "
                    f"{', '.join(sorted(filter(None, self.languages.values())))}, or {AUTO}"
                )
            return [next(iter(self.languages.values()))] * len(sources)
        asked = [language] * len(sources) if isinstance(language, str) else list(language)
        if len(asked) != len(sources):
            raise ConfigError(f"{len(asked)} languages are given for {len(sources)} recordings; expected one for each")
        for code in asked:
            if code != AUTO:
                self.adapter_of(code)
        return list(asked)

    def _decide(self, waveforms: Sequence[Any], asked: list[str | None], batch_size: int) -> None:
        """Replace ``AUTO`` by the language under which the beginning of a recording is the likeliest."""
        open_rows = [index for index, code in enumerate(asked) if code == AUTO]
        candidates = [code for code in self.languages.values() if code is not None]
        if not candidates:
            raise ConfigError(f"language={AUTO}, but the only run was trained without a language; leave it out")
        for start in range(0, len(open_rows), batch_size):
            rows = open_rows[start : start + batch_size]
            likelihoods = torch.stack(
                [self._likelihood([waveforms[i][: self.window] for i in rows], code) for code in candidates]
            )
            for row, best in zip(rows, likelihoods.argmax(0).tolist(), strict=True):
                asked[row] = candidates[best]

    def _likelihood(self, waveforms: Sequence[Any], language: str) -> torch.Tensor:
        """Mean log probability of the tokens of greedy transcripts, ``(recordings,)``."""
        self.switch(language)
        output = self.model.generate(
            input_features=self._features(waveforms),
            **generation_options(self.host, language),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps = torch.stack(output.logits, dim=1).float().log_softmax(-1)
        tokens = output.sequences[:, -steps.shape[1] :]
        chosen = steps.gather(-1, tokens[:, :, None])[:, :, 0]
        end = self.host.generation_config.eos_token_id
        # The end itself counts, what fills up behind it does not.
        spoken = ((tokens == end).cumsum(1) - (tokens == end).long()) == 0
        return (chosen * spoken).sum(1) / spoken.sum(1)

    def _features(self, waveforms: Sequence[Any]) -> torch.Tensor:
        extracted = self.processor.feature_extractor(
            list(waveforms), sampling_rate=self.sampling_rate, return_tensors="pt"
        )
        like = next(self.host.parameters())
        features: torch.Tensor = extracted.input_features.to(like.device, like.dtype)
        return features


def _trimmed(host: Any, trim: bool | None) -> Any:
    if trim:
        TrimmedEncoder(host)
    return host


def _adapted(runs: Sequence[WhisperRun], backbone: str) -> tuple[Any, Any]:
    """One Whisper with the adapters of several runs, and a processor."""
    from mambavox.adapters.token_rows import lighten_token_rows

    model, _ = load_whisper(backbone)
    processors = []
    for run in runs:
        with loading(str(run.folder), "run"):
            processors.append(WhisperProcessor.from_pretrained(run.folder, trust_remote_code=False))
        prepare_for(model, processors[-1].tokenizer)
    # Once there are rows of one adapter, PEFT looks for rows of every further one.
    for run in sorted(runs, key=lambda run: adapter_config(run.folder).get("trainable_token_indices") is not None):
        model = load_adapter(model, run.folder, _adapter_name(run.language))
    lighten_token_rows(model)
    return model, processors[0]


def _is_whisper_run(folder: Path) -> bool:
    try:
        return task_of(folder) == "whisper"
    except RunError:
        return False


def _adapter_name(language: str | None) -> str:
    # No part of a method's prefix (mambadapter_ has a pt), which PEFT would mistake it for.
    return "default" if language is None else f"language-{language_token(language)[2:-2]}"


def _check_together(runs: Sequence[WhisperRun]) -> None:
    if len(runs) < 2:
        return
    for name in ("backbone", "method", "trim_encoder", "num_beams"):
        values = {str(getattr(run, name)) for run in runs}
        if len(values) > 1 or "full" in values:
            raise ConfigError(
                f"runs in one Whisper need the same {name} and adapters, but {name} is {', '.join(sorted(values))}; "
                "expected adapters of one method on one backbone: leave out the others"
            )
    languages = [run.language for run in runs]
    tokens = {language_token(language) for language in languages if language is not None}
    if len(tokens) != len(languages):
        raise ConfigError(
            f"the languages of {', '.join(run.folder.name for run in runs)} are {', '.join(map(str, languages))}; "
            "expected a different one for each run"
        )


def _batches(languages: Sequence[str | None], size: int, mixed: bool) -> list[list[int]]:
    """Rows of each batch, in their order; where languages are not mixed, of one each."""
    groups: dict[str | None, list[int]] = {}
    for row, language in enumerate(languages):
        groups.setdefault(None if mixed else language, []).append(row)
    return [rows[start : start + size] for rows in groups.values() for start in range(0, len(rows), size)]
