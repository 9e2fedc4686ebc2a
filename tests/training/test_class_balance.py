"""Classes of very different size: told, counted alike where that is asked for, and scored one by one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from transformers import EvalPrediction
from typer.testing import CliRunner

from mambavox.cli.application import app
from mambavox.errors import ConfigError, DataWarning
from mambavox.runs.result import RunResult
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.data import notes_on_classes
from mambavox.training.classify.objective import (
    class_weights,
    mean_cross_entropy,
    score,
    valid_figures,
    weighted_cross_entropy,
)
from mambavox.training.run import run
from mambavox.training.sampling import EpochSampler, draw_classes_alike

CLASSES = [0] * 60 + [1] * 6 + [2] * 7


def test_classes_are_drawn_equally_often() -> None:
    heard = set()
    for seed in range(40):
        order = np.array(draw_classes_alike(CLASSES, np.random.default_rng(seed)))
        drawn = np.bincount(np.array(CLASSES)[order])
        assert len(order) == len(CLASSES) and drawn.max() - drawn.min() <= 1
        times = np.bincount(order, minlength=len(CLASSES))
        for number in range(3):  # none of a class again before all of it
            own = times[np.array(CLASSES) == number]
            assert own.max() - own.min() <= 1
        heard |= set(order.tolist())
    assert heard == set(range(len(CLASSES)))


class Recordings:
    """As many as classes, of an epoch."""

    epoch = 0

    def __len__(self) -> int:
        return len(CLASSES)


def test_the_order_depends_on_seed_and_epoch_alone_and_is_as_before_without_balance() -> None:
    dataset: Any = Recordings()
    orders = [list(EpochSampler(dataset, 3, classes=CLASSES)) for dataset.epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    dataset.epoch = 1
    plain = np.random.default_rng((3, 1)).permutation(len(CLASSES)).tolist()
    assert list(EpochSampler(dataset, 3)) == plain


def test_weights_make_classes_count_the_same() -> None:
    weights = class_weights(CLASSES)
    sums = [weight * CLASSES.count(number) for number, weight in enumerate(weights)]
    assert sums == pytest.approx([len(CLASSES) / 3] * 3)
    logits, labels = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 2, 0])
    found = weighted_cross_entropy({"logits": logits}, labels, 10, weights=weights)
    expected = F.cross_entropy(logits, labels, torch.tensor(weights), reduction="sum") / 10
    torch.testing.assert_close(found, expected)
    with torch.no_grad():  # losses on the valid split stay comparable
        unweighted = weighted_cross_entropy({"logits": logits}, labels, weights=weights)
        torch.testing.assert_close(unweighted, mean_cross_entropy({"logits": logits}, labels))


def test_the_figure_that_is_asked_for_ranks_epochs() -> None:
    targets = np.array([0] * 8 + [1] * 2)

    def logits(predicted: list[int], sure: float = 3.0) -> Any:
        return EvalPrediction(np.eye(2, dtype=np.float32)[predicted] * sure, targets)  # type: ignore[arg-type]

    never, both = logits([0] * 10), logits([0] * 5 + [1] * 3 + [1] * 2)
    ranks = {
        name: [valid_figures(item, metric=name)["rank"] for item in (never, both)] for name in ("accuracy", "macro_f1")
    }
    assert ranks["accuracy"][0] > ranks["accuracy"][1] and ranks["macro_f1"][0] < ranks["macro_f1"][1]
    surer = [
        valid_figures(logits([0] * 10, sure), metric=name)["rank"]
        for name in ("macro_f1", "loss")
        for sure in (1.0, 9.0)
    ]
    assert surer[0] > surer[1] and surer[2] > surer[3]  # among equals, and alone, the lower loss
    figures = valid_figures(both)
    assert figures["macro_f1"] == pytest.approx(score(targets, [0] * 5 + [1] * 5).macro_f1)


def test_scores_of_each_class() -> None:
    found = score([0, 0, 0, 1], [0, 0, 1, 1], ["dog", "cat", "none such"]).classes
    assert found[0] == {"label": "dog", "recordings": 3, "precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8)}
    assert found[1] == {"label": "cat", "recordings": 1, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    assert len(found) == 2


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten tones of a class and two of another, of which two and one are for validation."""
    folder, generator = tmp_path_factory.mktemp("unbalanced"), np.random.default_rng(0)
    rows = []
    for label, frequency, count, valid in (("low", 300.0, 10, 2), ("high", 2500.0, 3, 1)):
        for number in range(count):
            tone = np.sin(2 * np.pi * frequency * np.arange(4800) / 16_000)
            path = f"{label}_{number}.wav"
            soundfile.write(folder / path, 0.3 * tone + 0.1 * generator.standard_normal(4800), 16_000)
            rows.append({"path": path, "label": label, "split": "valid" if number < valid else "train"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_run_tells_and_treats_unbalanced_classes(
    unbalanced: str, backbone: Callable[[str], str], tmp_path: Path
) -> None:
    results = {}
    for balance, metric in (("none", "accuracy"), ("weights", "macro_f1"), ("sampling", "loss")):
        config = ClassifyConfig.from_mapping(
            {
                "data": unbalanced,
                "output": str(tmp_path / balance),
                "backbone": backbone("ast"),
                "epochs": 3,
                "batch_size": 4,
                "learning_rate": 0.01,
                "bottleneck_dim": 4,
                "tensorboard": False,
                "device": "cpu",
                "class_balance": balance,
                "metric_for_best_model": metric,
            }
        )
        if balance == "none":
            with pytest.warns(DataWarning, match=r"8 recordings of low and 2 of high; a classifier that never says"):
                results[balance] = run(config)
        else:
            results[balance] = run(config)
    said = {"none": "nothing is done", "weights": "weighted in the loss", "sampling": "drawn equally often"}
    for balance, result in results.items():
        (note,) = [note for note in result.notes if note.startswith("unbalanced classes: train has 8")]
        assert said[balance] in note
        assert [row["label"] for row in result.scores["valid"]["classes"]] == ["high", "low"]
        assert "| class (valid) | recordings |" in (tmp_path / balance / "README.md").read_text()
    losses = [result.learning_curve[-1]["train_loss"] for result in results.values()]
    assert len(set(losses)) == 3
    curve = {row["epoch"]: row["valid_loss"] for row in results["sampling"].learning_curve}
    assert results["sampling"].best_epoch == min(curve, key=lambda epoch: curve[epoch])
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "weights"), "--split", "valid"])
    assert done.exit_code == 0 and ", F1 " in done.output, done.output
    assert RunResult.load(tmp_path / "weights").scores == results["weights"].scores


def test_classes_of_nearly_the_same_name_are_told() -> None:
    with pytest.warns(DataWarning, match=r"capitals or spaces alone: 'dog' and 'Dog', 'a b' and 'A  b'; are they"):
        (note,) = notes_on_classes(["dog", "cat", "Dog", "a b", "A  b"], ClassifyConfig(data="x"))
    assert note.startswith("classes that differ")
    assert notes_on_classes(["dog", "cat"], ClassifyConfig(data="x")) == []


def test_another_task_has_other_figures() -> None:
    with pytest.raises(ConfigError, match="metric_for_best_model=wer; expected one of accuracy, macro_f1, loss"):
        ClassifyConfig(metric_for_best_model="wer")  # type: ignore[arg-type]
    done = CliRunner().invoke(app, ["adapt", "--task", "ctc", "--data", "x", "--metric-for-best-model", "macro_f1"])
    assert done.exit_code == 1 and "metric_for_best_model=macro_f1; expected one of wer, cer" in done.output
