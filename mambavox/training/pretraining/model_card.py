"""The README.md of a pre-trained model."""

from mambavox.training.pretraining.config import MFCC
from mambavox.training.pretraining.figures import Figures
from mambavox.training.pretraining.result import PretrainResult
from mambavox.training.run_config import RUN_FILE

_CARD = """---
library_name: transformers
tags:
- mambavox
- speech
- self-supervised
---

# {preset}, {trained} on {name}

A Mamba-HuBERT: a self-supervised encoder of speech, 16 kHz mono, one frame in 20 ms.

## Use

```python
import mambavox.hubert
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("{path}")
extractor = AutoFeatureExtractor.from_pretrained("{path}")
```

`AutoModelForCTC` and `AutoModelForAudioClassification` load it with a new head{own_head}.
Without mambavox installed: `trust_remote_code=True`.

## Training

| | |
|---|---|
| parameters | {encoder:,} encoder, {whole:,} with the head{s} of the training |
| speech | {hours:.2f} h in {clips:,} recordings |
| targets | {targets} |
| updates | {steps:,} ({epochs:.1f} epochs) |
| valid | {valid} |
| time | {time:.2f} h on {device} |

![figures]({curve})

`{run_file}` holds the whole configuration and `metrics.json` every figure; `mambavox pretrain --config {run_file}` runs
it again.
"""


def model_card(result: PretrainResult, figures: type[Figures], path: str, name: str, curve: str) -> str:
    """Markdown of a pre-trained model's card.

    Args:
        result: what the run gave.
        figures: say what is told of it.
        path: the run folder.
        name: of the data.
        curve: file of the plot.
    """
    valid = "no recordings held back"
    if result.valid:
        valid = f"{figures.valid_line(result.valid)} ({result.clips['valid']} recordings held back)"
    distilled = result.num_clusters is None
    return _CARD.format(
        preset=result.preset,
        name=name,
        path=path,
        encoder=result.parameters["encoder"],
        whole=result.parameters["whole"],
        hours=result.hours["train"],
        clips=result.clips["train"],
        trained="distilled" if distilled else "pre-trained",
        own_head="" if distilled else ", `AutoModelForPreTraining` with the one it was trained with",
        s="s" if len(result.student_layers) > 1 else "",
        targets=_targets(result),
        steps=result.steps,
        epochs=result.epochs,
        valid=valid,
        time=result.seconds / 3600,
        device=result.device if result.processes == 1 else f"{result.processes} x {result.device}",
        curve=curve,
        run_file=RUN_FILE,
    )


def _targets(result: PretrainResult) -> str:
    """What was predicted, in words."""
    model, _, layers = result.targets.rpartition(":")
    if result.num_clusters is not None:
        return f"{result.num_clusters} units of {'MFCC' if result.targets == MFCC else f'layer {layers} of {model}'}"
    pairs = ", ".join(
        f"{theirs} (from the student's {ours})"
        for theirs, ours in zip(layers.split(","), result.student_layers, strict=True)
    )
    front_end = f"; begun with {len(result.from_teacher)} tensors of its front end" if result.from_teacher else ""
    return f"layers {pairs} of {model}{front_end}"
