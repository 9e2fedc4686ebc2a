"""The steps of a Whisper run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel
from torch import nn

from mambavox.adapters import apply_method
from mambavox.asr.metrics import TranscriptScores
from mambavox.asr.whisper import load_whisper
from mambavox.asr.whisper_decoding import RepetitionGuard, repeated_line, without_repetition
from mambavox.asr.whisper_language import (
    add_language,
    generation_options,
    known_languages,
    language_token,
    prefix_ids,
)
from mambavox.asr.whisper_window import TrimmedEncoder
from mambavox.errors import ConfigError, DataError
from mambavox.hub import load_config, load_extractor
from mambavox.runs.card import CardText
from mambavox.runs.result import RunResult
from mambavox.training.front_end import FrontEnd, longest_seconds
from mambavox.training.recognition import prediction_rows, score_split
from mambavox.training.splits import RunData, Split
from mambavox.training.task import AdaptTask, Scored
from mambavox.training.transcripts import load_transcripts
from mambavox.training.whisper.config import WhisperConfig
from mambavox.training.whisper.data import IGNORED, TranscriptDataset, as_written
from mambavox.training.whisper.objective import WhisperTrainer

_LOADING = """In Python:

```python
from mambavox.asr.whisper import WhisperTranscriber

transcriber = WhisperTranscriber.from_pretrained("{run}")
print(transcriber.transcribe(["recording.wav"])[0].text)
```"""


class WhisperTask(AdaptTask[WhisperConfig, WhisperTrainer]):
    """Adapts a Whisper to a language, which gets a token of its own where the model lacks it."""

    config_class = WhisperConfig
    curve: ClassVar = ("wer", "cer")

    def read(self) -> RunData:
        """Transcribed recordings that fit into Whisper's window."""
        name = self.config.given_backbone
        self.window = longest_seconds(load_extractor(name), load_config(name))
        return load_transcripts(self.config, self.console, longest=self.window, learns_silence=True)

    def make_model(self) -> nn.Module:
        """The Whisper with its adapters and, for a language it lacks, a token's row that is trained, too."""
        config = self.config
        host, self.processor = load_whisper(config.given_backbone)
        tokenizer = self.processor.tokenizer
        new = None
        if config.language is not None:
            new = add_language(host, tokenizer, config.language, config.language_like)
        elif known_languages(host):
            raise ConfigError(
                f"no language is given, and {config.backbone} knows {len(known_languages(host))}; "
                "expected the code of the one that is spoken: --language"
            )
        self.new_token = None if new is None or config.language is None else language_token(config.language)
        prefix = prefix_ids(host, config.language)
        model = apply_method(host, config.method, config.method_options, token_rows=[] if new is None else [new])
        if config.trim_encoder:
            TrimmedEncoder(host)
        front_end = FrontEnd(self.processor.feature_extractor, host.config, self.window)
        most = host.config.max_target_positions
        for name, split in self.data.splits.items():
            self.data.splits[name] = self._fitting(name, split, most - len(prefix) - 1)
        self.datasets = {
            name: TranscriptDataset(
                split.examples,
                as_written(split.written, config.language),
                front_end,
                prefix=prefix,
                tokenizer=tokenizer,
                max_tokens=most,
                spec_augment=config.spec_augment and name == "train",
                seed=config.seed,
            )
            for name, split in self.data.splits.items()
        }
        longest = max(len(tokens) for dataset in self.datasets.values() for tokens in dataset.tokens)
        self.generation = {
            **generation_options(host, config.language),
            "max_new_tokens": min(config.max_new_tokens or math.ceil(1.5 * longest), most - len(prefix)),
            "num_beams": config.num_beams,
            "stopping_criteria": [RepetitionGuard()],
        }
        self.repeats: dict[str, int] = {}
        return model

    def _fitting(self, name: str, split: Split, most: int) -> Split:
        """The recordings whose transcripts the decoder can take; where they may be skipped, the others are told of."""
        if self.config.on_error == "raise":
            return split
        written, kept = as_written(split.written, self.config.language), []
        for row, (example, text) in enumerate(zip(split.examples, written, strict=True)):
            tokens = len(self.processor.tokenizer(text, add_special_tokens=False).input_ids)
            if tokens <= most:
                kept.append(row)
                continue
            reason = f"its transcript has {tokens} tokens and the decoder takes {most}"
            self.data.left_out.append({"name": example.name, "split": name, "reason": reason})
        if not kept and len(split):
            raise DataError(
                f"{self.config.data}: no transcript of the split {name} fits into the {most} tokens of the decoder"
            )
        return split if len(kept) == len(split) else split.take(kept)

    def make_trainer(self) -> WhisperTrainer:
        """Cross-entropy of tokens, a line to the final learning rate, the best epoch by an error rate."""
        return WhisperTrainer(
            self.model,
            self.config,
            self.folder,
            train=self.datasets["train"],
            valid=self.datasets["valid"],
            generation=self.generation,
            error_rates=lambda generated: self._score("valid", generated).rates,
            console=self.console,
        )

    def _score(self, name: str, generated: Sequence[Sequence[int]]) -> TranscriptScores:
        """Error rates of the tokens generated for a split."""
        split = self.data.splits[name]
        # Seq2SeqTrainer fills rows up with -100 and, of several processes, the last batches with the first recordings.
        rows = [[token for token in row if token != IGNORED] for row in generated[: len(split)]]
        end = self.processor.tokenizer.eos_token_id
        cut = [without_repetition([token for token in row if token != end]) for row in rows]
        self.repeats[name] = sum(repeats for _, repeats in cut)
        heard = self.processor.tokenizer.batch_decode([row for row, _ in cut], skip_special_tokens=True)
        return score_split(split, heard, self.config.language)

    def scores(self, trainer: WhisperTrainer) -> Scored:
        """Error rates of each split, with the search that the run is configured with."""
        found: Scored = {}
        for name in self.data.held_back:
            scores = self._score(name, trainer.transcribe(self.datasets[name]))
            found[name] = (scores.to_mapping(), prediction_rows(name, scores))
            if self.console and self.repeats[name]:
                self.console.print(f"{name}: {repeated_line(self.repeats[name], len(scores.utterances))}")
        return found

    def details(self) -> dict[str, Any]:
        """The language's new token, how transcripts are generated, and how many repeated themselves without end."""
        return {
            "language": self.config.language,
            "new_token": self.new_token,
            "max_new_tokens": self.generation["max_new_tokens"],
            "num_beams": self.config.num_beams,
            "repeats": {name: self.repeats[name] for name in self.data.held_back},
        }

    def card(self, result: RunResult) -> CardText:
        """A recogniser of a language."""
        config = self.config
        token = f" (a new token, {self.new_token})" if self.new_token else ""
        language = f" in {config.language}{token}" if config.language else ""
        search = "greedily" if config.num_beams == 1 else f"with {config.num_beams} beams"
        return CardText(
            title=f"{result.backbone} adapted with {config.method}: {Path(config.given_data).name}",
            summary=f"Speech recognition{language}. Transcripts are found {search}, at most "
            f"{self.generation['max_new_tokens']} tokens a recording; scores are without case and punctuation.",
            loading=_LOADING.format(run=self.folder.path.as_posix()),
            training=self.training_text(result),
            pipeline_tag="automatic-speech-recognition",
            tags=("whisper", config.method),
        )

    def save_inputs(self, path: Path) -> None:
        """The processor with the language's token and, beside an adapter, how to generate."""
        if isinstance(self.model, PeftModel):
            host: Any = self.model.get_base_model()
            host.generation_config.save_pretrained(path)
        self.processor.save_pretrained(path)
