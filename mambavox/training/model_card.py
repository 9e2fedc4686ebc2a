"""The README.md of a run folder."""

from mambavox.training.backbone import Pooling
from mambavox.training.result import AdaptResult
from mambavox.training.run_config import RUN_FILE

_CARD = """---
library_name: {library}
base_model: {backbone}
pipeline_tag: audio-classification
tags:
- mambavox
- {method}
---

# {backbone} adapted with {method}: {name}

An audio classifier for {count} classes: {labels}.

## Use

```python
import mambavox

classifier = mambavox.AudioClassifier.from_pretrained("{path}")
print(classifier("recording.wav")[0])
```

or `mambavox predict {path} recording.wav`. {loading}

## Scores

| part | clips | accuracy [95 % interval] | macro F1 |
|---|---|---|---|
{scores}

{notes}

Epoch {best_epoch} of {epochs}{choice}. Recordings longer than {max_seconds:.2f} s are cut.

## Training

{total:,} trainable parameters: {adapter:,} of the method ({share:.2%} of the backbone) and {head:,} of the head.
Learning rate {learning_rate:g}, {seconds:.0f} s on {device}. `{run_file}` holds the whole configuration and
`metrics.json` every figure; `mambavox adapt --config {run_file}` runs it again.
"""

_ADAPTER = """`import mambavox` is what makes PEFT know the adapter's type; with it,
`peft.PeftModel.from_pretrained(model, "{path}")` loads the adapter and the head onto the backbone that
`mambavox.training.backbone.load_backbone` loads at the right length."""
_WHOLE = "`AutoModelForAudioClassification.from_pretrained` loads it, too."
_MEAN_POOLING = """Its head reads the mean of all tokens, which transformers' own does not: load the backbone
with `mambavox.training.backbone.load_backbone(..., pooling="mean")`."""


def model_card(result: AdaptResult, labels: list[str], path: str, name: str, pooling: Pooling) -> str:
    """Markdown of a run's model card, with the lines that load it.

    Args:
        result: the run's figures.
        labels: the classes.
        path: the run folder.
        name: of the data.
        pooling: what its head reads.
    """
    rows = (
        f"| {result.describe_part(part)} | {scores.clips} | {scores} | {scores.macro_f1:.3f} |"
        for part, scores in result.scores.items()
    )
    whole = result.method == "full"
    loading = [] if whole else [_ADAPTER.format(path=path)]
    if pooling == "mean":
        loading.append(_MEAN_POOLING)
    elif whole:
        loading.append(_WHOLE)
    chooser = "test" if result.selects_on_test else "valid"
    return _CARD.format(
        library="transformers" if whole else "peft",
        loading=" ".join(loading),
        backbone=result.backbone,
        method=result.method,
        name=name,
        count=len(labels),
        labels=", ".join(labels),
        path=path,
        scores="\n".join(rows) or "| none |  |  |  |",
        best_epoch=result.best_epoch,
        epochs=len(result.learning_curve),
        notes="\n".join(f"- {note}" for note in result.notes),
        choice=f", the best on the {chooser} part" if chooser in result.scores else "",
        max_seconds=result.max_seconds,
        total=result.parameters["total"],
        adapter=result.parameters["adapter"],
        head=result.parameters["head"],
        share=result.parameters["share_of_backbone"],
        learning_rate=result.learning_rate,
        seconds=result.seconds,
        device=result.device,
        run_file=RUN_FILE,
    )
