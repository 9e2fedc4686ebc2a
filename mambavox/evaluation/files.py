"""What an evaluation leaves: the scores, what became of each recording, plots."""

from pathlib import Path
from typing import Any

from mambavox.evaluation.evaluate import Classification, Evaluation
from mambavox.files import to_json, write_atomically
from mambavox.runs import plots
from mambavox.runs.config import data_name
from mambavox.runs.folder import RunFolder
from mambavox.runs.predictions import PREDICTIONS_FILE, write_predictions
from mambavox.training.recognition import prediction_rows

SCORES_FILE = "scores.json"
"""Everything that ``mambavox evaluate --json`` prints."""


def evaluation_folder(run: str | Path, evaluation: Evaluation, data: str | None) -> Path:
    """Where an evaluation's files go: a folder of the run, named after the data and the splits.

    Args:
        run: the run folder.
        evaluation: of it.
        data: that were given in the place of the run's own.
    """
    parts = [*([] if data is None else [data_name(data)]), *evaluation.scores]
    return RunFolder(run).evaluations / "-".join(parts)


def write_evaluation(evaluation: Evaluation, folder: Path) -> tuple[list[str], str | None]:
    """Write ``scores.json``, ``predictions.csv`` and a plot; earlier ones there are replaced.

    Args:
        evaluation: of a run.
        folder: made where it is not there.

    Returns:
        Names of the files, and why there is no plot, if there is none.

    Raises:
        OSError: the folder cannot be written into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[dict[str, Any]]] = {}
    labels: list[str] | None = None
    for name, scores in evaluation.scores.items():
        if isinstance(scores, Classification):
            splits[name], labels = scores.rows, list(scores.labels)
        else:
            splits[name] = prediction_rows(name, scores)
    write_atomically(folder / SCORES_FILE, to_json(evaluation.to_mapping()))
    write_predictions(folder / PREDICTIONS_FILE, [row for rows in splits.values() for row in rows])
    problem = plots.draw_predictions(folder, splits, labels, Path(evaluation.data).name)
    return [SCORES_FILE, PREDICTIONS_FILE, *plots.plots_in(folder)], problem
