"""The figures of a comparison as Markdown, CSV and LaTeX."""

import csv
import io
import json
from typing import Any

from mambavox.evaluation.compare.grid import Task, Variant
from mambavox.evaluation.compare.statistics import DRAWS, Interval
from mambavox.evaluation.compare.summary import RateChoice, Score, Summary

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def markdown(summary: Summary) -> str:
    """The whole report: scores, differences to the reference, learning rates, parts, failures, remarks.

    Args:
        summary: of a grid.
    """
    grid = summary.grid
    seeds, devices = ", ".join(map(str, grid.seeds)), ", ".join(summary.devices) or "nothing"
    parts = [
        f"# {grid.name}\n\n{_backbones(summary)}, seeds {seeds}, trained on {devices}. "
        f"{_names(summary)} on the test split in %: mean and standard deviation over the seeds; a seed's score is the "
        "mean over the folds. "
        "Parameters: trained ones, norms counted, head not.",
        _score_table(summary),
        _difference_section(summary),
        "## Learning rates\n\nChosen for each method and task alike by the score on the valid split, with the first "
        "seed and fold.\n\n" + "\n".join(_rate_lines(summary)),
        "## Splits\n\n" + "\n".join(f"- {task}: {'; '.join(notes)}" for task, notes in summary.notes.items()),
    ]
    if grid.remarks:
        parts.append("## Remarks\n\n" + "\n".join(f"- {remark}" for remark in grid.remarks))
    if summary.failures:
        parts.append("## Failed runs\n\n" + "\n".join(f"- {failure}" for failure in summary.failures))
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(summary: Summary) -> str:
    """A line for each task and variant; scores from 0 to 1.

    Args:
        summary: of a grid.
    """
    rows = [_csv_row(summary, task, variant) for task in summary.grid.tasks for variant in summary.grid.variants]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _csv_row(summary: Summary, task: Task, variant: Variant) -> dict[str, Any]:
    score = summary.score(task, variant)
    interval, difference = score.interval, score.difference
    return {
        "task": task.name,
        "variant": variant.name,
        "method": variant.method,
        "options": json.dumps(dict(variant.options)),
        "parameters": score.parameters,
        "metric": score.metric,
        "learning_rate": score.rate.best,
        "rate_edge": score.rate.edge,
        "mean": interval and interval.value,
        "deviation": score.deviation,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "values": " ".join(f"{value:.6g}" for value in score.values),
        "reference": summary.references[task.name],
        "difference": difference and difference.value,
        "difference_low": difference and difference.low,
        "difference_high": difference and difference.high,
        "verdict": score.verdict,
        "seconds": score.seconds,
        "failures": "; ".join(score.failures),
    }


def latex(summary: Summary) -> str:
    """The table of scores, for the package booktabs.

    Args:
        summary: of a grid.
    """
    header = ["Method", "Parameters", *_columns(summary), *_mean_header(summary, "Mean")]
    rows = [
        [variant.name, _parameters(summary, variant), *_scores(summary, variant), *_mean(summary, variant)]
        for variant in summary.grid.variants
    ]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", _latex_row(header), r"\midrule"]
    return "\n".join([*lines, *map(_latex_row, rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(values: list[str]) -> str:
    return " & ".join(value.translate(_LATEX).replace("±", r"$\pm$") for value in values) + r" \\"


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _score_table(summary: Summary) -> str:
    header = ["method", "parameters", *_columns(summary), *_mean_header(summary, "mean")]
    rows = [
        [variant.name, _parameters(summary, variant), *_scores(summary, variant), *_mean(summary, variant)]
        for variant in summary.grid.variants
    ]
    return _markdown_table(header, rows)


def _columns(summary: Summary) -> list[str]:
    marks = dict.fromkeys(summary.optimistic, " (optimistic)")
    metrics = {task.name: f" {LABELS[summary.metric(task)]}" for task in summary.grid.tasks}
    several = len(summary.metrics) > 1
    return [
        task.name + (metrics[task.name] if several else "") + marks.get(task.name, "") for task in summary.grid.tasks
    ]


LABELS = {"accuracy": "accuracy", "wer": "WER", "cer": "CER"}
"""How a metric is written."""


def _names(summary: Summary) -> str:
    names = " and ".join(LABELS[metric] for metric in summary.metrics)
    return names[0].upper() + names[1:]


def _backbones(summary: Summary) -> str:
    names = list(dict.fromkeys(summary.grid.backbone_of(task) for task in summary.grid.tasks))
    return f"Backbone{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _mean_header(summary: Summary, name: str) -> list[str]:
    return [name] if len(summary.metrics) == 1 else []


def _parameters(summary: Summary, variant: Variant) -> str:
    return " / ".join(f"{count:,}" for count in summary.parameters(variant)) or "-"


def _scores(summary: Summary, variant: Variant) -> list[str]:
    return [_score(summary.score(task, variant)) for task in summary.grid.tasks]


def _score(score: Score) -> str:
    if score.interval is None:
        return f"failed ({len(score.failures)})"
    spread = "" if score.deviation is None else f" ± {100 * score.deviation:.1f}"
    return f"{100 * score.interval.value:.1f}{spread}"


def _mean(summary: Summary, variant: Variant) -> list[str]:
    if len(summary.metrics) > 1:
        return []
    mean = summary.mean(variant)
    return ["-" if mean is None else f"{100 * mean:.1f}"]


def _difference_section(summary: Summary) -> str:
    grid = summary.grid
    if not any(score.difference for score in summary.scores.values()):
        return ""
    what = grid.reference or "the best baseline, the one with the best test score, which flatters it"
    rows = [[variant.name, *(_difference(summary, task, variant) for task in grid.tasks)] for variant in grid.variants]
    return (
        f"## Difference to {grid.reference or 'the best baseline'}\n\nPoints to {what}, with the 95 % "
        f"interval of a paired bootstrap over seeds and test recordings ({DRAWS:,} draws), not corrected for the "
        "number of comparisons.\n\n" + _markdown_table(["method", *_columns(summary)], rows)
    )


def _difference(summary: Summary, task: Task, variant: Variant) -> str:
    if summary.references[task.name] == variant.name:
        return "(reference)"
    score = summary.score(task, variant)
    return "-" if score.difference is None else f"{points(score.difference)}: {score.verdict}"


def points(difference: Interval) -> str:
    """A difference of scores in percentage points, with its interval.

    Args:
        difference: as a share.
    """
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _rate_lines(summary: Summary) -> list[str]:
    return [
        f"- {task.name}, {variant.name}: {_rates(summary.score(task, variant).rate, LABELS[summary.metric(task)])}"
        for task in summary.grid.tasks
        for variant in summary.grid.variants
    ]


def _rates(choice: RateChoice, metric: str) -> str:
    if choice.given:
        return f"{choice.best:g}, given"
    tried = ", ".join(f"{rate:g}: " + ("none" if a is None else f"{100 * a:.1f}") for rate, a in choice.tried)
    if choice.best is None:
        return f"no run succeeded ({tried})"
    edge = f", the {choice.edge} of the grid: one beyond it may be better" if choice.edge else ""
    return f"**{choice.best:g}**{edge} (valid {metric} in %: {tried})"
