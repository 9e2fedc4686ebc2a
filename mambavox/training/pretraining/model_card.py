"""The README.md of a pre-trained model."""

from mambavox.training.pretraining.config import MFCC
from mambavox.training.pretraining.result import PretrainResult
from mambavox.training.run_config import RUN_FILE

_CARD = """---
library_name: transformers
tags:
- mambavox
- speech
- self-supervised
---

# {preset}, pre-trained on {name}

A Mamba-HuBERT: a self-supervised encoder of speech, 16 kHz mono, one frame in 20 ms.

## Use

```python
import mambavox.hubert
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("{path}")
extractor = AutoFeatureExtractor.from_pretrained("{path}")
```

`AutoModelForCTC` and `AutoModelForAudioClassification` load it with a new head, `AutoModelForPreTraining` with the one
it was trained with. Without mambavox installed: `trust_remote_code=True`.

## Training

| | |
|---|---|
| parameters | {encoder:,} encoder, {whole:,} with the pre-training head |
| speech | {hours:.2f} h in {clips:,} recordings |
| targets | {clusters} units of {targets} |
| updates | {steps:,} ({epochs:.1f} epochs) |
| valid | {valid} |
| time | {time:.2f} h on {device} |

![figures]({curve})

`{run_file}` holds the whole configuration and `metrics.json` every figure; `mambavox pretrain --config {run_file}` runs
it again.
"""


def model_card(result: PretrainResult, path: str, name: str, curve: str) -> str:
    """Markdown of a pre-trained model's card.

    Args:
        result: the run's figures.
        path: the run folder.
        name: of the data.
        curve: file of the plot.
    """
    valid = "no recordings held back"
    if result.valid:
        valid = (
            f"{result.valid['masked_accuracy']:.1%} of hidden frames right, loss {result.valid['prediction_loss']:.3f} "
            f"({result.clips['valid']} recordings held back)"
        )
    layer = result.targets.rpartition(":")
    return _CARD.format(
        preset=result.preset,
        name=name,
        path=path,
        encoder=result.parameters["encoder"],
        whole=result.parameters["whole"],
        hours=result.hours["train"],
        clips=result.clips["train"],
        clusters=result.num_clusters,
        targets="MFCC" if result.targets == MFCC else f"layer {layer[2]} of {layer[0]}",
        steps=result.steps,
        epochs=result.epochs,
        valid=valid,
        time=result.seconds / 3600,
        device=result.device if result.processes == 1 else f"{result.processes} x {result.device}",
        curve=curve,
        run_file=RUN_FILE,
    )
