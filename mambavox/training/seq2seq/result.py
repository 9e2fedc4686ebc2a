"""What an adaptation of Whisper gave, and what its run folder says of it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mambavox.adapters import ParameterCounts
from mambavox.asr.metrics import Utterance
from mambavox.errors import RunError
from mambavox.training.result import not_finished
from mambavox.training.run_config import RUN_FILE
from mambavox.training.run_folder import METRICS_FILE

_CARD = """---
library_name: {library}
base_model: {backbone}
pipeline_tag: automatic-speech-recognition
{language_line}tags:
- mambavox
- {method}
---

# {backbone} adapted with {method}: {name}

Speech recognition{in_language}.

## Use

    mambavox transcribe recording.wav --model {path}

or

```python
from mambavox.evaluation.transcriber import WhisperTranscriber

transcriber = WhisperTranscriber.from_pretrained("{path}")
print(transcriber.transcribe(["recording.wav"])[0].text)
```

## Scores

Transcripts and references without case and punctuation (`mambavox.asr.text.normalize_text`); 95 % intervals.

| part | recordings | word error rate | character error rate |
|---|---|---|---|
{scores}

{notes}

Epoch {best_epoch} of {epochs}{choice}. At most {max_new_tokens} tokens a recording, {search}.

## Training

{total:,} trainable parameters, {share:.2%} of the backbone. Learning rate {learning_rate:g}, {seconds:.0f} s on
{device}. `{run_file}` holds the whole configuration and `metrics.json` every figure; `mambavox adapt --config
{run_file}` runs it again.
"""


@dataclass(frozen=True)
class Seq2SeqResult:
    """What a run gave; ``metrics.json`` holds the same.

    Attributes:
        task: ``"asr"``.
        method: how the backbone was adapted.
        backbone: what was adapted.
        language: of the transcripts; none for a model of one language.
        new_token: the language's token where it is a new one.
        scores: for ``valid`` and ``test``, as far as there are such parts, word and character error rates with
            intervals and counts, as ``TranscriptScores.to_mapping`` gives them.
        learning_curve: for each epoch its number, training loss, and loss and word error rate on the valid part.
        best_epoch: the epoch that was kept.
        parameters: trainable ones, as ``trainable_parameters`` counts them.
        seconds: time of the training, transcription after each epoch included.
        learning_rate: peak.
        max_new_tokens: tokens generated for a recording at most.
        num_beams: beams of the search.
        clips: recordings of each part.
        hours: of each part.
        left_out: recordings that were longer than ``max_seconds``.
        skipped: name and reason of the recordings that could not be used.
        notes: how the parts came about.
        device: where it was trained.
        versions: of the libraries.
    """

    task: str
    method: str
    backbone: str
    language: str | None
    new_token: str | None
    scores: Mapping[str, Mapping[str, Any]]
    learning_curve: list[dict[str, float]]
    best_epoch: int
    parameters: ParameterCounts
    seconds: float
    learning_rate: float
    max_new_tokens: int
    num_beams: int
    clips: Mapping[str, int]
    hours: Mapping[str, float]
    left_out: int
    skipped: list[dict[str, str]]
    notes: list[str]
    device: str
    versions: Mapping[str, str]

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def describe(self, part: str, rate: str) -> str:
        """An error rate of a part in words.

        Args:
            part: ``valid`` or ``test``.
            rate: ``wer`` or ``cer``.
        """
        figures = self.scores[part][rate]
        return "{:.2f} % [{:.2f}, {:.2f}]".format(*(100 * figures[key] for key in ("rate", "low", "high")))

    @classmethod
    def load(cls, run: str | Path) -> "Seq2SeqResult":
        """Read the result of a finished run.

        Args:
            run: its folder.

        Raises:
            RunError: it holds no finished run.
        """
        path = Path(run) / METRICS_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise not_finished(Path(run)) from error
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); expected what `mambavox adapt --task asr` writes"
            ) from error


def model_card(result: Seq2SeqResult, path: str, name: str) -> str:
    """Markdown of a run's model card, with the lines that use it.

    Args:
        result: the run's figures.
        path: the run folder.
        name: of the data.
    """
    rows = (
        f"| {part} | {figures['utterances']} | {result.describe(part, 'wer')} | {result.describe(part, 'cer')} |"
        for part, figures in result.scores.items()
    )
    token = f" (a new token, {result.new_token})" if result.new_token else ""
    return _CARD.format(
        library="transformers" if result.method == "full" else "peft",
        backbone=result.backbone,
        language_line=f"language: {result.language}\n" if result.language else "",
        method=result.method,
        name=name,
        in_language=f" in {result.language}{token}" if result.language else "",
        path=path,
        scores="\n".join(rows) or "| none |  |  |  |",
        notes="\n".join(f"- {note}" for note in result.notes),
        best_epoch=result.best_epoch,
        epochs=len(result.learning_curve),
        choice=", the best on the valid part" if "valid" in result.scores else "",
        max_new_tokens=result.max_new_tokens,
        search="greedily" if result.num_beams == 1 else f"with {result.num_beams} beams",
        total=result.parameters["total"],
        share=result.parameters["share_of_backbone"],
        learning_rate=result.learning_rate,
        seconds=result.seconds,
        device=result.device,
        run_file=RUN_FILE,
    )


def write_transcripts(path: Path, parts: Mapping[str, Sequence[Utterance]]) -> None:
    """Write what was said and heard in each part as CSV, a line a recording.

    Args:
        path: the file.
        parts: the utterances of each.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        rows = [{"part": part, **item.to_mapping()} for part, utterances in parts.items() for item in utterances]
        writer.writerow(rows[0] if rows else ["part"])
        writer.writerows(row.values() for row in rows)
