"""The steps of a classification run."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mambavox.adapters import apply_method
from mambavox.errors import ConfigError, DataError
from mambavox.files import to_json
from mambavox.runs.card import CardText
from mambavox.runs.folder import LABELS_FILE
from mambavox.runs.result import RunResult
from mambavox.training.classify.backbone import backbone_limit, load_backbone
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.data import fitting_seconds, load_labelled, natural_order, notes_on_classes
from mambavox.training.classify.objective import (
    class_rows,
    class_weights,
    mean_cross_entropy,
    predict_logits,
    probabilities,
    score,
    valid_figures,
    weighted_cross_entropy,
)
from mambavox.training.engine import EpochTrainer
from mambavox.training.features import Collator, FeatureDataset
from mambavox.training.frozen_front import CachedCollator, CachedFeatures, FrozenFront
from mambavox.training.splits import RunData
from mambavox.training.task import AdaptTask, Scored

_LOADING = """In Python:

```python
import mambavox

classifier = mambavox.AudioClassifier.from_pretrained("{run}")
print(classifier("recording.wav")[0])
```

{more}"""
_ADAPTER = """`import mambavox` is what makes PEFT know the adapter's type; with it,
`peft.PeftModel.from_pretrained(model, "{run}")` loads the adapter and the head onto the backbone that
`mambavox.training.classify.backbone.load_backbone` loads at the right length."""
_WHOLE = "`AutoModelForAudioClassification.from_pretrained` loads it, too."
_MEAN_POOLING = """Its head reads the mean of all tokens, which transformers' own does not: load the backbone
with `mambavox.training.classify.backbone.load_backbone(..., pooling="mean")`."""


class ClassifyTask(AdaptTask[ClassifyConfig, EpochTrainer]):
    """Adapts a backbone with a classification head."""

    config_class = ClassifyConfig
    curve: ClassVar = ("accuracy", "macro_f1")

    def read(self) -> RunData:
        """Labelled recordings; the classes are those of the training split."""
        data = load_labelled(self.config, self.console)
        self.labels = natural_order(set(data.train.targets))
        if len(self.labels) < 2:
            raise DataError(
                f"{self.config.data}: the only class is {self.labels[0]!r}; expected two or more: --label-column"
            )
        data.notes.extend(notes_on_classes(data.train.targets, self.config))
        return data

    def make_model(self) -> nn.Module:
        """The backbone at the length that the recordings need, with its adapters and head."""
        config, train = self.config, self.data.train
        name = config.given_backbone
        crop = config.crop_seconds or fitting_seconds(train, backbone_limit(name))
        self.backbone = load_backbone(
            name, self.labels, crop, pooling=config.pooling, position_embeddings=config.position_embeddings
        )
        self.front_end = self.backbone.front_end
        if cut := self._cut():
            self.data.notes.append(
                f"{cut} recordings are longer than {self.front_end.crop_seconds:.2f} s; their beginnings were learned "
                "and scored (`mambavox predict` hears recordings whole)"
            )
        if config.spec_augment and not self.front_end.is_spectrogram:
            raise ConfigError(
                f"spec_augment masks spectrograms, but {name} hears waveforms; leave it out (--no-spec-augment)"
            )
        if config.length_buckets and not self.front_end.pads_to_longest:
            raise ConfigError(
                f"length_buckets saves padding, but {name} hears every clip at one length; leave it out "
                "(--no-length-buckets)"
            )
        model = apply_method(self.backbone.model, config.method, config.method_options)
        self.front = FrozenFront(model) if config.cache_features else None
        self.datasets = {
            split: FeatureDataset(
                part.examples,
                self.labels,
                self.front_end,
                spec_augment=config.spec_augment and split == "train",
                seed=config.seed,
            )
            for split, part in self.data.splits.items()
        }
        return model

    def make_trainer(self) -> EpochTrainer:
        """Cross-entropy, a cosine to zero, the best epoch by accuracy or what is asked for."""
        balance, metric = self.config.class_balance, self.config.metric_for_best_model
        targets = self.datasets["train"].targets or []
        loss = mean_cross_entropy
        if balance == "weights":
            loss = partial(weighted_cross_entropy, weights=class_weights(targets))
        trainer = EpochTrainer(
            self.model,
            self.config,
            self.folder,
            train=self.datasets["train"],
            valid=self.datasets["test" if self.data.selects_on_test else "valid"],
            collate=Collator(self.front_end),
            chooses="rank",
            greater=True,
            valid_line=partial(_valid_line, metric=metric),
            console=self.console,
            schedule={"lr_scheduler_type": "cosine"},
            compute_metrics=partial(valid_figures, metric=metric),
            compute_loss_func=loss,
        )
        trainer.classes = targets if balance == "sampling" else None
        if self.front is not None:
            self._cache(trainer, self.front)
        return trainer

    def _cache(self, trainer: EpochTrainer, front: FrozenFront) -> None:
        """Run what is frozen before the first trained layer once for each recording, and train from there on."""
        start, arguments = time.perf_counter(), trainer.args
        for name in ("train_dataset", "eval_dataset"):
            dataset = getattr(trainer, name)
            if dataset is not None:
                size = arguments.per_device_eval_batch_size
                setattr(trainer, name, CachedFeatures(dataset, front, size, self.folder.path, bf16=arguments.bf16))
        trainer.data_collator = CachedCollator(self.front_end)
        trainer.clock.before += time.perf_counter() - start

    def scores(self, trainer: EpochTrainer) -> Scored:
        """Accuracy and macro F1 of each split, and the class and probabilities that each recording was given."""
        found: Scored = {}
        for name, split in self.data.held_back.items():
            logits = predict_logits(self.model, self.datasets[name], self.config.evaluation_batch)
            rows = class_rows(name, split, logits.argmax(axis=1), probabilities(logits), self.labels)
            found[name] = (score(split.targets, [row["predicted"] for row in rows]).to_mapping(), rows)
        return found

    def details(self) -> dict[str, Any]:
        """Where recordings were cut, and how many."""
        return {"labels": self.labels, "crop_seconds": self.front_end.crop_seconds, "cut": self._cut()}

    def _cut(self) -> int:
        """Recordings whose beginnings alone are learned and scored."""
        longest = self.front_end.crop_seconds
        return sum(seconds > longest for split in self.data.splits.values() for seconds in split.seconds)

    def card(self, result: RunResult) -> CardText:
        """An audio classifier."""
        config, run = self.config, self.folder.path.as_posix()
        whole = config.method == "full"
        loading = [] if whole else [_ADAPTER.format(run=run)]
        if config.pooling == "mean":
            loading.append(_MEAN_POOLING)
        elif whole:
            loading.append(_WHOLE)
        return CardText(
            title=f"{result.backbone} adapted with {config.method}: {Path(config.given_data).name}",
            summary=f"An audio classifier for {len(self.labels)} classes: {', '.join(self.labels)}. It hears "
            f"{self.front_end.crop_seconds:.2f} s at once: of longer recordings the beginnings were learned and "
            "scored; `mambavox predict` and `AudioClassifier` hear them whole, as the mean over windows.",
            loading=_LOADING.format(run=run, more=" ".join(loading)),
            training=self.training_text(result) + _class_table(result),
            pipeline_tag="audio-classification",
            tags=(config.method,),
        )

    def save_inputs(self, path: Path) -> None:
        """The feature extractor and the classes."""
        self.front_end.extractor.save_pretrained(path)
        (path / LABELS_FILE).write_text(to_json(self.labels), encoding="utf-8")


def _valid_line(metrics: Mapping[str, float], metric: str) -> str:
    """The figures of the valid split in words."""
    more = {"macro_f1": ", macro F1 {eval_macro_f1:.3f}", "loss": ", loss {eval_loss:.4f}"}.get(metric, "")
    return f"accuracy {100 * metrics['eval_accuracy']:.1f} %" + more.format(**metrics)


def _class_table(result: RunResult) -> str:
    """Scores of each class on the split that is reported, in Markdown."""
    split = next((name for name in ("test", "valid") if name in result.scores), None)
    if split is None:
        return ""
    rows = []
    for row in result.scores[split]["classes"]:
        label = row["label"].replace("|", "\\|")
        figures = " | ".join(f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
        rows.append(f"| {label} | {row['recordings']} | {figures} |")
    head = f"| class ({split}) | recordings | precision | recall | F1 |\n|---|---|---|---|---|"
    return "\n\n" + "\n".join([head, *rows])
