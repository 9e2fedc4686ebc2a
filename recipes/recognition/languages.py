"""Adapt nano-whisper to languages that it has not heard, and to real speech, with five methods.

    python recipes/recognition/languages.py --data ../shared/data --output runs/languages --workers 2

``ca``, ``cs``, ``pt``, ``sw`` and ``tr`` are synthesised (``speech.UNSEEN``; the test part from held-out sentences) and
get a new language token; ``real-de``, ``real-nl`` and ``real-en`` are recordings, whose training part the backbone
has heard. A method's learning rate, from one grid for all, is the best by the character error rate of the valid
part of the first language with the first seed. What is finished is not run again.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from nano_whisper import SECONDS
from speech import RATE, UNSEEN, Speech, Texts

from mambavox.asr.metrics import score_transcripts
from mambavox.asr.text import normalize_text
from mambavox.asr.whisper import WhisperTranscriber
from mambavox.training.run import run as adapt
from mambavox.training.whisper.config import WhisperConfig

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"r": 48, "lora_alpha": 96},
    "bottleneck": {"where": "encoder", "bottleneck_dim": 96},
    "conformer": {"where": "encoder", "bottleneck_dim": 60},
    "mambadapter": {"where": "encoder", "bottleneck_dim": 64},
}
"""Methods and options; in sizes of about 188,000 parameters each (LoRA: 184,320), the language's row not counted."""
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)
CLIPS = {"train": 240, "valid": 24, "test": 80}
"""Synthesised phrases of a language."""
REAL = {
    "de": ("multilingual_asr", "valid"),
    "nl": ("multilingual_asr", "valid"),
    "en": ("librispeech_subset", "test_other"),
}
"""Folder of the real speech of a language, and its test part."""


def synthesised(data: Path, folder: Path, language: str) -> Path:
    """A manifest of synthesised phrases of an unseen language, written once."""
    manifest = folder / f"{language}.jsonl"
    if manifest.is_file():
        return manifest
    lines = []
    for number, (split, count) in enumerate(CLIPS.items()):
        texts = Texts.read(data / "texts", (language,), held_out=split == "test")
        stream = iter(Speech(texts, {language: UNSEEN[language]}, [], seconds=SECONDS / 2, seed=number))
        for index in range(count):
            spoken = next(stream)
            path = folder / language / f"{split}-{index:04d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, spoken.waveform, RATE)
            lines.append({"path": str(path.resolve()), "text": spoken.text, "split": split})
    return _write(manifest, lines)


def real(data: Path, folder: Path, language: str) -> Path:
    """A manifest of the real recordings of a language that fit into the window; every eighth of training is valid."""
    corpus, test = REAL[language]
    lines = []
    for text in (data / corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        if row["language"] != language or row["split"] not in ("train", test) or row["duration"] > SECONDS:
            continue
        split = "test" if row["split"] == test else "valid" if len(lines) % 8 == 7 else "train"
        lines.append({"path": str((data / corpus / row["path"]).resolve()), "text": row["text"], "split": split})
    return _write(folder / f"real-{language}.jsonl", lines)


def _write(manifest: Path, lines: Iterable[dict[str, str]]) -> Path:
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return manifest


@dataclass(frozen=True)
class Run:
    """One adaptation."""

    task: str
    method: str
    rate: float
    seed: int

    def config(self, arguments: argparse.Namespace) -> WhisperConfig:
        """Of the run."""
        return WhisperConfig(
            data=str(arguments.output / "manifests" / f"{self.task}.jsonl"),
            output=str(arguments.output / self.task / f"{self.method}-{self.rate:g}-seed{self.seed}"),
            backbone=str(arguments.backbone),
            language=self.task.removeprefix("real-"),
            method=self.method,
            method_options=METHODS[self.method],
            learning_rate=self.rate,
            seed=self.seed,
            epochs=arguments.epochs,
            batch_size=8,
            eval_batch_size=40,
            warmup_ratio=0.1,
            trim_encoder=True,
            metric_for_best_model="cer",
            drop_longer_than=float(SECONDS),
            drop_eval_longer_than=float(SECONDS),
            precision="bfloat16",
            device="cpu",
            tensorboard=False,
        )


def figures_of(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run, which is done or continued if it must."""
    torch.set_num_threads(1)
    config = run.config(arguments)
    result = adapt(config, resume=config.output_path.exists())
    return {
        "scores": result.scores,
        "parameters": result.parameters["total"],
        "seconds": result.seconds,
        "max_new_tokens": result.details["max_new_tokens"],
    }


def not_adapted(task: str, max_new_tokens: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Error rates of the backbone as it is on the test part of real speech."""
    text = (arguments.output / "manifests" / f"{task}.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if row["split"] == "test"]
    language = task.removeprefix("real-")
    transcriber = WhisperTranscriber.from_pretrained(arguments.backbone, trim_encoder=True, device="cpu")
    transcriber.max_new_tokens = max_new_tokens
    heard = transcriber.transcribe([row["path"] for row in rows], language)
    return score_transcripts(
        [normalize_text(row["text"], language) for row in rows],
        [normalize_text(said.text, language) for said in heard],
        language=language,
    ).rates


def table(
    figures: dict[Run, dict[str, Any]],
    before: dict[str, dict[str, float]],
    rates: dict[str, float],
    tasks: list[str],
    rate: str,
) -> str:
    """Markdown of an error rate on the test parts, mean and deviation over the seeds.

    Args:
        figures: of each run.
        before: error rates of the backbone by the task, where it knows the language.
        rates: the learning rate of each method.
        tasks: the columns.
        rate: ``"wer"`` or ``"cer"``.
    """
    lines = [f"| {rate.upper()} % | trained | learning rate | " + " | ".join(tasks) + " |"]
    lines.append("|---|--:|--:|" + "--:|" * len(tasks))
    cells = [f"{100 * before[task][rate]:.1f}" if task in before else "" for task in tasks]
    lines.append("| not adapted | 0 | | " + " | ".join(cells) + " |")
    for method, chosen in rates.items():
        cells, trained = [], 0
        for task in tasks:
            runs = [figures[Run(task, method, chosen, seed)] for seed in SEEDS]
            values = [100 * run["scores"]["test"][rate]["rate"] for run in runs]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
            trained = max(trained, runs[0]["parameters"])
        lines.append(f"| {method} | {trained:,} | {chosen:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, run what is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backbone", default="nano-whisper", help="embedded name or folder")
    parser.add_argument("--tasks", nargs="+", default=[*UNSEEN, *(f"real-{language}" for language in REAL)])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        folder = arguments.output / "manifests"
        if task.startswith("real-"):
            real(arguments.data, folder, task.removeprefix("real-"))
        else:
            synthesised(arguments.data, folder, task)

    figures: dict[Run, dict[str, Any]] = {}
    with ProcessPoolExecutor(arguments.workers) as pool:

        def do(runs: list[Run]) -> None:
            waiting = {run: pool.submit(figures_of, run, arguments) for run in runs}
            for run, future in waiting.items():
                figures[run] = future.result()
                score = figures[run]["scores"]["test"]
                words = (
                    f"WER {score['wer']['rate']:.3f}  CER {score['cer']['rate']:.3f}  {figures[run]['seconds']:.0f} s"
                )
                print(f"{run.task}  {run.method}  {run.rate:g}  seed {run.seed}  {words}", flush=True)

        first = arguments.tasks[0]
        do([Run(first, method, rate, SEEDS[0]) for method in METHODS for rate in RATES])
        rates = {
            method: min(
                RATES, key=lambda rate: figures[Run(first, method, rate, SEEDS[0])]["scores"]["valid"]["cer"]["rate"]
            )
            for method in METHODS
        }
        runs = [
            Run(task, method, rates[method], seed) for task in arguments.tasks for method in METHODS for seed in SEEDS
        ]
        do([run for run in runs if run not in figures])
    some = next(iter(METHODS))
    before = {
        task: not_adapted(task, figures[Run(task, some, rates[some], SEEDS[0])]["max_new_tokens"], arguments)
        for task in arguments.tasks
        if task.startswith("real-")
    }
    tables = "\n\n".join(table(figures, before, rates, arguments.tasks, rate) for rate in ("cer", "wer"))
    (arguments.output / "tables.md").write_text(tables + "\n", encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
