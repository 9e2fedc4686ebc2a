"""What the tasks of speech recognition share in scoring: figures of a split, rows of predictions, lines of progress."""

from collections.abc import Mapping, Sequence
from typing import Any

from mambavox.asr.metrics import TranscriptScores, score_transcripts
from mambavox.asr.text import normalize_text
from mambavox.training.splits import Split


def score_split(split: Split, heard: Sequence[str], language: str | None) -> TranscriptScores:
    """Compare what was heard with what was said, both without case and punctuation.

    Args:
        split: the recordings; their targets are normalised transcripts.
        heard: what was heard in each, as the model writes it.
        language: code of the language.
    """
    normalized = [normalize_text(text, language) for text in heard]
    names = [example.name for example in split.examples]
    return score_transcripts(split.targets, normalized, names=names, language=language)


def prediction_rows(name: str, scores: TranscriptScores) -> list[dict[str, Any]]:
    """Rows of ``predictions.csv``: what was said and heard, and the errors.

    Args:
        name: of the split.
        scores: of the split.
    """
    rows = []
    for utterance in scores.utterances:
        figures = utterance.to_mapping()
        row = {
            "split": name,
            "recording": figures.pop("name"),
            "target": figures.pop("reference"),
            "predicted": figures.pop("hypothesis"),
        }
        rows.append({**row, **figures})
    return rows


def valid_line(metrics: Mapping[str, float]) -> str:
    """Figures of the valid split in words: its error rates, or the loss where nothing was transcribed."""
    if "eval_wer" not in metrics:
        return f"loss {metrics['eval_loss']:.4f}"
    return f"WER {100 * metrics['eval_wer']:.2f} %  CER {100 * metrics['eval_cer']:.2f} %"
