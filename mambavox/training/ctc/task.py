"""The steps of a CTC run."""

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mambavox.adapters import apply_method
from mambavox.asr.decoding import greedy_search
from mambavox.asr.model import ctc_log_probs, load_ctc_model, num_frames
from mambavox.asr.tokenizer import Vocabulary, encode, frames_needed, train_tokenizer
from mambavox.errors import DataError
from mambavox.hub import load_extractor
from mambavox.runs.card import CardText
from mambavox.runs.result import RunResult
from mambavox.training.ctc.config import CtcConfig
from mambavox.training.ctc.data import SpeechDataset
from mambavox.training.ctc.objective import CtcTrainer
from mambavox.training.recognition import prediction_rows, score_split
from mambavox.training.splits import RunData, Split
from mambavox.training.task import AdaptTask, Scored
from mambavox.training.transcripts import load_transcripts

_AT_ONCE = 64  # recordings whose waveforms are in memory
_WHOLE = """`AutoModelForCTC.from_pretrained("{run}")` and `AutoTokenizer` load it (after `import mambavox.hubert`)."""
_ADAPTER = """`mambavox.SpeechRecognizer.from_pretrained("{run}")` loads the adapter and the head onto the backbone."""


class CtcTask(AdaptTask[CtcConfig, CtcTrainer]):
    """Trains a recogniser whose tokens are made of the training transcripts."""

    config_class = CtcConfig
    curve: ClassVar = ("wer", "cer")

    def read(self) -> RunData:
        """Transcribed recordings, and the tokens of their transcripts."""
        self.config.given_backbone  # noqa: B018  before hours of recordings are read
        data = load_transcripts(self.config, self.console)
        config = self.config
        self.tokenizer = train_tokenizer(data.train.written, config.vocabulary, config.vocabulary_size)
        self.vocabulary = Vocabulary.of(self.tokenizer)
        return data

    def make_model(self) -> nn.Module:
        """The backbone with a head for the tokens; training recordings too short for theirs are left out."""
        config, vocabulary = self.config, self.vocabulary
        host = load_ctc_model(config.given_backbone, len(vocabulary.tokens), vocabulary.blank)
        self.extractor = load_extractor(config.given_backbone)
        model: nn.Module
        if config.method == "full":
            model = host.requires_grad_(True)
            if not config.train_front:
                host.freeze_feature_encoder()
        else:
            model = apply_method(host, config.method, config.method_options)
        rate = int(self.extractor.sampling_rate)
        self.data.splits["train"] = self._feasible(self.data.train, host, rate)
        self.datasets = {
            name: SpeechDataset(split, [encode(self.tokenizer, text) for text in split.written], rate)
            for name, split in self.data.splits.items()
        }
        return model

    def _feasible(self, split: Split, host: Any, rate: int) -> Split:
        """Recordings with a frame for each token; the others are told of."""
        kept = []
        for row, (example, text, seconds) in enumerate(zip(split.examples, split.written, split.seconds, strict=True)):
            needed, there = frames_needed(encode(self.tokenizer, text)), num_frames(host, round(seconds * rate))
            if needed <= there:
                kept.append(row)
                continue
            reason = f"its transcript needs {needed} frames and it has {there}: CTC cannot learn it"
            self.data.left_out.append({"name": example.name, "split": "train", "reason": reason})
        if not kept:
            raise DataError(f"{self.config.data}: no training transcript fits into the frames of its recording")
        return split.take(kept)

    def make_trainer(self) -> CtcTrainer:
        """CTC with masks and a schedule of three stages."""
        return CtcTrainer(
            self.model,
            self.config,
            self.folder,
            vocabulary=self.vocabulary,
            extractor=self.extractor,
            train=self.datasets["train"],
            valid=self.datasets["valid"],
            console=self.console,
        )

    def scores(self, trainer: CtcTrainer) -> Scored:
        """Error rates of each split, found greedily."""
        self.model.eval()
        found: Scored = {}
        for name, split in self.data.held_back.items():
            scores = score_split(split, self._transcribe(self.datasets[name]), self.config.language)
            found[name] = (scores.to_mapping(), prediction_rows(name, scores))
        return found

    def _transcribe(self, dataset: SpeechDataset) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(dataset), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(dataset)))
            waveforms = [dataset.waveform(row) for row in rows]
            found = ctc_log_probs(self.model, self.extractor, waveforms, self.config.evaluation_batch)
            texts += [self.vocabulary.text(greedy_search(log_probs, self.vocabulary.blank)) for log_probs in found]
        return texts

    def details(self) -> dict[str, Any]:
        """Size of the vocabulary, and what of the held-back transcripts it cannot write."""
        unknown = {
            name: sum(token == self.vocabulary.unknown for ids in dataset.ids for token in ids)
            for name, dataset in self.datasets.items()
            if name != "train"
        }
        return {"vocabulary": len(self.vocabulary.tokens), "unknown_tokens": unknown}

    def card(self, result: RunResult) -> CardText:
        """A recogniser."""
        config, run = self.config, self.folder.path.as_posix()
        form = f"normalised (language: {config.language or 'none given'})" if config.normalize else "as they are"
        return CardText(
            title=f"{result.backbone}, trained to transcribe {Path(config.given_data).name}",
            summary=f"Speech recognition with CTC. Decoding is greedy; transcripts are {form}.",
            loading=(_WHOLE if config.method == "full" else _ADAPTER).format(run=run),
            training=self.training_text(result),
            pipeline_tag="automatic-speech-recognition",
            tags=("ctc", config.method),
        )

    def save_inputs(self, path: Path) -> None:
        """The tokenizer and the feature extractor."""
        self.tokenizer.save_pretrained(path)
        self.extractor.save_pretrained(path)
