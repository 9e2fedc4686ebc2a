"""The model card of a run: its README.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mambavox.runs.config import RUN_FILE, RunConfig
from mambavox.runs.folder import COMMANDS, USES
from mambavox.runs.predictions import PREDICTIONS_FILE
from mambavox.runs.result import RunResult, describe_scores

_CARD = """---
{header}---

# {title}

{summary}

## Use

    {use}

{loading}

## Scores

| split | recordings | scores [95 % interval] |
|---|---|---|
{scores}

{notes}{plots}

## Training

{training}

`{run_file}` holds the whole configuration, `metrics.json` every figure{predictions};
`{command} --config {run_file}` runs it again.
"""


@dataclass(frozen=True)
class CardText:
    """What a task says of its runs.

    Attributes:
        title: first line.
        summary: what the model is.
        loading: how to load it in Python, in Markdown.
        training: how it was trained, in Markdown.
        pipeline_tag: kind of task on the Hub; ``None`` where it has none.
        tags: further tags.
    """

    title: str
    summary: str
    loading: str
    training: str
    pipeline_tag: str | None = None
    tags: Sequence[str] = ()


def model_card(result: RunResult, config: RunConfig, run: Path, text: CardText, plots: Sequence[str] = ()) -> str:
    """Markdown of a run's model card.

    Args:
        result: the run's figures.
        config: of the run.
        run: its folder.
        text: what its task says.
        plots: names of the files that lie beside it.
    """
    whole = result.method in (None, "full")
    header: dict[str, Any] = {"library_name": "transformers" if whole else "peft"}
    if result.method is not None:
        header["base_model"] = result.backbone
    if text.pipeline_tag:
        header["pipeline_tag"] = text.pipeline_tag
    if language := getattr(config, "language", None):
        header["language"] = language
    header["tags"] = ["mambavox", *text.tags]
    rows = [
        f"| {result.describe_split(split)} | {result.recordings.get(split, '')} | {describe_scores(figures)} |"
        for split, figures in result.scores.items()
    ]
    notes = [*result.notes, *_left_out(result.left_out)]
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        title=text.title,
        summary=text.summary,
        use=USES[result.task].format(run=run.as_posix()),
        loading=text.loading,
        scores="\n".join(rows) or "| none |  |  |",
        notes="\n".join(f"- {note}" for note in notes),
        plots="".join(f"\n\n![{Path(name).stem}]({name})" for name in plots),
        training=text.training,
        run_file=RUN_FILE,
        predictions="" if result.method is None else f", `{PREDICTIONS_FILE}` what became of each recording",
        command=COMMANDS[result.task],
    )


def trained_parameters(parameters: Mapping[str, Any]) -> str:
    """How many parameters an adaptation trained, in words."""
    return (
        f"{parameters['total']:,} trained parameters: {parameters['adapter']:,} of the method "
        f"({parameters['share_of_backbone']:.2%} of the backbone) and {parameters['head']:,} of the head."
    )


def _left_out(left_out: Sequence[Mapping[str, str]]) -> list[str]:
    return [f"{len(left_out)} recordings were left out; metrics.json says which and why"] if left_out else []
