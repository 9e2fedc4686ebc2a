"""Linear probes: how much of four real tasks can a straight line read out of frozen nano-ast features?

    python recipes/nano_ast/probe.py --data ../shared/data --model mambavox/assets/nano-ast

Train on each task's training split, score on its validation split (esc10: folds 1-3, fold 4). Beside the model stand
the same network untrained and plain log mels (mean and standard deviation over time).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from train import encode, make_model
from transformers import ASTFeatureExtractor, ASTModel

from mambavox.data.audio import read_audio

TASKS = {
    "fsdd": (1.0, {"train"}, {"valid"}),
    "arabic_speech_commands": (1.0, {"train"}, {"valid"}),
    "esc10": (5.0, {"fold1", "fold2", "fold3"}, {"fold4"}),
    "coffee_intents": (5.0, {"train"}, {"valid"}),
}
"""Seconds that clips are cut or padded to, splits to train on, splits to score on."""

Features = Callable[[Tensor], Tensor]


def read(pack: Path, splits: set[str], duration: float) -> tuple[list[NDArray[np.float32]], list[str]]:
    rows = [json.loads(line) for line in (pack / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] in splits]
    samples = round(duration * 16_000)
    waveforms = [read_audio(pack / row["path"])[:samples] for row in rows]
    return [np.pad(w, (0, samples - w.size)) for w in waveforms], [str(row["label"]) for row in rows]


def log_mels(waveforms: list[NDArray[np.float32]], extractor: ASTFeatureExtractor) -> Tensor:
    extractor.max_length = (len(waveforms[0]) - 400) // 160 + 1
    return torch.from_numpy(extractor(waveforms, sampling_rate=16_000, return_tensors="np").input_values)


def mean_patches(model: ASTModel) -> Features:
    return lambda features: torch.cat([encode(model, chunk)[:, 2:].mean(1) for chunk in features.split(64)])


def pooler(model: ASTModel) -> Features:
    return lambda features: torch.cat([encode(model, chunk)[:, :2].mean(1) for chunk in features.split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    extractor = ASTFeatureExtractor.from_pretrained(arguments.model)
    model, untrained = ASTModel.from_pretrained(arguments.model, dtype=torch.float32).eval(), make_model().eval()
    views: dict[str, Features] = {
        "nano-ast, mean of patches": mean_patches(model),
        "nano-ast, pooler": pooler(model),
        "untrained, mean of patches": mean_patches(untrained),
        "log mel, mean and deviation": lambda features: torch.cat([features.mean(1), features.std(1)], 1),
    }
    print("| features | " + " | ".join(TASKS) + " |\n|---|" + "---|" * len(TASKS))
    scores: dict[str, list[float]] = {name: [] for name in views}
    for task, (duration, train_splits, valid_splits) in TASKS.items():
        train, train_labels = read(arguments.data / task, train_splits, duration)
        valid, valid_labels = read(arguments.data / task, valid_splits, duration)
        inputs = log_mels(train, extractor), log_mels(valid, extractor)
        for name, view in views.items():
            with torch.no_grad():
                train_features, valid_features = (view(part).numpy() for part in inputs)
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
            probe.fit(train_features, train_labels)
            scores[name].append(float(probe.score(valid_features, valid_labels)))
    for name, values in scores.items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")


if __name__ == "__main__":
    main()
