"""Where a Mamba must stand in an adapter of Whisper, and how big it must be: variants side by side, on validation.

    python recipes/recognition/adapter_study.py run pilot --data MANIFEST --backbone whisper-base --work /tmp/study
    python recipes/recognition/adapter_study.py table

Every cell (variant, language, budget, rate, seed) is one run of ``mambavox adapt --task whisper`` and one JSON file in
``--cells``; a file that is there is never computed again, and a run that was killed goes on from its last epoch. The
test split is left out of the manifest that the runs read. The epoch with the lowest token cross-entropy on the valid
part is kept and transcribed. All cells have batches of like lengths, float32, trimmed windows, AdamW with a tenth of
the updates of warm-up and a rate that falls linearly to a fiftieth, and train no norm of the host.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from mambavox.adapters.weight_decay import no_weight_decay
from mambavox.files import to_json, write_atomically
from mambavox.runs.folder import METRICS_FILE
from mambavox.training.callbacks import EpochProgress
from mambavox.training.run import run
from mambavox.training.whisper import task
from mambavox.training.whisper.config import WhisperConfig
from mambavox.training.whisper.data import IGNORED
from mambavox.training.whisper.objective import WhisperTrainer

NAMED = 3
"""Targets before the text: language, task, no timestamps."""
HERE = Path(__file__).resolve().parent

BUDGETS: dict[str, dict[str, Any]] = {
    "tiny": {"train_seconds": 60.0, "valid_seconds": 10.0, "epochs": 1},  # to try the script
    "pilot": {"train_seconds": 600.0, "epochs": 3},
    "long": {"train_seconds": 1200.0, "epochs": 5},
}
"""How much is learned from: seconds of the train split and passes over them, four recordings a step."""

# A straight path beside a normalised Mamba block, projections that start at unit variance, a gate that starts at 1.
STRAIGHT = {"residual": "gelu", "mixer_norm": "rms", "down_init": "unit", "scale_init": 1.0}
SMALL = {"d_state": 8, "d_conv": 4, "expand": 1}
"""A small block."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # What it is compared with.
    "bottleneck-64": ("bottleneck", {"bottleneck_dim": 64}),
    "bottleneck-64-unit": ("bottleneck", {"bottleneck_dim": 64, "down_init": "unit"}),
    "bottleneck-32": ("bottleneck", {"bottleneck_dim": 32}),
    "bottleneck-64-shared": ("bottleneck", {"bottleneck_dim": 64, "sharing": "all"}),
    "bottleneck-128-shared": ("bottleneck", {"bottleneck_dim": 128, "sharing": "all"}),
    "lora-32": ("lora", {"r": 32, "lora_alpha": 64}),
    "lora-16": ("lora", {"r": 16, "lora_alpha": 32}),
    "conformer-40": ("conformer", {"bottleneck_dim": 40}),
    "full": ("full", {}),
    # The paper's block, and with the straight path.
    "paper-64": ("mambadapter", {"bottleneck_dim": 64}),
    "shared-64-block-64": ("mambadapter", {"bottleneck_dim": 64, **STRAIGHT}),
    "own-24-both-ways": ("mambadapter", {"bottleneck_dim": 24, "sharing": "none", "mixer": "bimamba", **STRAIGHT}),
    # A small block over some of the channels.
    "own-62-block-16": ("mambadapter", {"bottleneck_dim": 62, "sharing": "none", "mixer_dim": 16, **SMALL, **STRAIGHT}),
    "own-60-block-16-both-ways": (
        "mambadapter",
        {"bottleneck_dim": 60, "sharing": "none", "mixer_dim": 16, "mixer": "bimamba", **SMALL, **STRAIGHT},
    ),
    "shared-64-block-16-both-ways": (
        "mambadapter",
        {"bottleneck_dim": 64, "mixer_dim": 16, "mixer": "bimamba", **SMALL, **STRAIGHT},
    ),
    "shared-64-block-64-small": ("mambadapter", {"bottleneck_dim": 64, **SMALL, **STRAIGHT}),
    "own-48-block-48-small": ("mambadapter", {"bottleneck_dim": 48, "sharing": "none", **SMALL, **STRAIGHT}),
}
"""Method and options of each variant; ``train_norms`` is off but for full fine-tuning."""


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
        variant: a key of ``VARIANTS``.
        rate: peak learning rate.
        budget: a key of ``BUDGETS``.
        language: of the manifest.
        seed: of initialisation, order of the data, dropout and masks.
        spec_augment: mask one band of mel bins and one stretch of frames of each recording.
        dropout: of the adapter (LoRA: of its input).
        weight_decay: AdamW's.
        part_rates: factors of the rate by the part: ``block``, ``gate``, ``projections``.
        options: further options of the method.
    """

    variant: str
    rate: float = 3e-3
    budget: str = "pilot"
    language: str = "hsb"
    seed: int = 0
    spec_augment: bool = False
    dropout: float = 0.0
    weight_decay: float = 0.01
    part_rates: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def name(self) -> str:
        """Of its file."""
        parts = [self.language, self.budget, self.variant, f"{self.rate:g}"]
        parts += [f"{name}={value}" for name, value in self.options]
        parts += [f"{part}x{factor:g}" for part, factor in self.part_rates]
        parts += [f"dropout={self.dropout:g}"] if self.dropout else []
        parts += ["masked"] if self.spec_augment else []
        parts += [f"decay={self.weight_decay:g}"] if self.weight_decay != 0.01 else []
        return "_".join([*parts, f"seed{self.seed}"])

    @property
    def method(self) -> tuple[str, dict[str, Any]]:
        """The method and all its options."""
        method, options = VARIANTS[self.variant]
        options = {**options, **dict(self.options)}
        if self.dropout:
            options["lora_dropout" if method == "lora" else "dropout"] = self.dropout
        return method, options if method in ("lora", "full") else {"train_norms": False, **options}


def cells(stage: str) -> list[Cell]:
    """The cells of a stage, in the order in which they are run."""
    masked: dict[str, Any] = {"spec_augment": True, "dropout": 0.1}
    own, shared = "own-60-block-16-both-ways", "shared-64-block-16-both-ways"
    stages = {
        "try": [Cell("bottleneck-64", budget="tiny"), Cell(own, budget="tiny")],
        # The three forms at one size, and whether the start at unit variance alone is what helps.
        "size": [Cell("bottleneck-64"), Cell(own), Cell("bottleneck-64-unit"), Cell("lora-32")],
        "small": [Cell(shared), Cell("bottleneck-64-shared")],
        "regular": [Cell(own, **masked), Cell("bottleneck-64", **masked)],
        "language": [Cell(name, language="ckb") for name in (own, "bottleneck-64", "lora-32")],
        "languages": [Cell(name, language=code) for code in ("yo", "am", "lb") for name in (own, "bottleneck-64")],
        "where": [
            Cell(own, language="ckb", options=(("placement", "attention"),)),
            Cell(own, language="ckb", options=(("placement", "both"), ("bottleneck_dim", 30))),
            Cell("own-62-block-16", language="ckb"),
            Cell("own-48-block-48-small", language="ckb"),
        ],
        "rates": [Cell(name, rate=rate) for rate in (1e-3, 1e-2) for name in (own, "bottleneck-64", "lora-32")],
        "regular-ckb": [Cell(name, language="ckb", **masked) for name in (own, "bottleneck-64")],
        "other-rates": [
            *(Cell("full", rate=rate) for rate in (3e-5, 1e-4, 3e-4)),
            *(Cell("conformer-40", rate=rate) for rate in (1e-3, 3e-3, 1e-2)),
            *(Cell("paper-64", rate=rate) for rate in (3e-4, 1e-3, 3e-3)),
        ],
        "parts": [Cell(own, part_rates=(("block", 0.3),)), Cell(own, part_rates=(("block", 3.0),))],
    }
    if stage not in stages:
        raise SystemExit(f"stage {stage!r}; expected one of {', '.join(stages)}")
    return stages[stage]


def part_of(name: str) -> str:
    """Which part of an adapter a parameter belongs to, by its name."""
    if ".mixer" in name:
        return "block"
    return "gate" if name.endswith((".scale", ".gate.weight", ".gate.bias")) else "projections"


class StudyTrainer(WhisperTrainer):
    """The trainer of a Whisper run with what the study varies; an epoch is judged by its token cross-entropy."""

    cell: Cell

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args.metric_for_best_model = "eval_loss"
        self.remove_callback(EpochProgress)  # it prints error rates, which are not computed here
        # The loss is still falling then, and each look at it costs as much as thirty seconds of training speech.
        self.args.eval_delay = max(self.args.num_train_epochs - 2, 1)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a rate for each part."""
        if self.optimizer is None:
            factors = dict(self.cell.part_rates)
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    decay = 0.0 if no_weight_decay(name, parameter) else self.cell.weight_decay
                    groups.setdefault((factors.get(part_of(name), 1.0), decay), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": parameters, "lr": self.args.learning_rate * factor, "weight_decay": decay}
                    for (factor, decay), parameters in groups.items()
                ],
                lr=self.args.learning_rate,
                betas=(0.9, 0.98),
                eps=1e-6,
                fused=True,
            )
        return self.optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; before the first update an adapter adds nothing, so that this loss is the unadapted model's."""
        if not kwargs.get("resume_from_checkpoint") and self.cell == Cell(
            "bottleneck-64", budget=self.cell.budget, language=self.cell.language
        ):
            self.before = self.token_loss()
            print(f"  before: {self.before}", flush=True)
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean cross-entropy of the valid split's tokens."""
        metrics = {f"eval_{name}": value for name, value in self.token_loss().items()}
        self.log(dict(metrics))
        print(f"  epoch {self.state.epoch:g}: {metrics}", flush=True)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def token_loss(self) -> dict[str, float]:
        """``loss`` over all targets, as trained, and ``text_loss`` without those that name language and task."""
        part: Any = self.eval_dataset
        self.model.eval()
        order = sorted(range(len(part)), key=lambda index: part.lengths[index])
        total, text, targets, words = 0.0, 0.0, 0, 0
        for start in range(0, len(order), 8):
            batch = self.data_collator([part[index] for index in order[start : start + 8]])
            labels = batch["labels"]
            logits = self.model(**batch).logits.float()
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
            each = each.view_as(labels)
            total, targets = total + float(each.sum()), targets + int((labels != IGNORED).sum())
            text, words = text + float(each[:, NAMED:].sum()), words + int((labels[:, NAMED:] != IGNORED).sum())
        return {"loss": total / targets, "text_loss": text / words}


def without_test(data: Path, language: str, work: Path) -> Path:
    """A manifest of the train and valid rows of a language."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    kept = [
        {**row, "path": str((data.parent / row["path"]).resolve())}
        for row in rows
        if row["language"] == language and row["split"] != "test"
    ]
    target = work / f"{language}.jsonl"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    if not target.is_file() or target.read_text(encoding="utf-8") != lines:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(lines, encoding="utf-8")
    return target


def run_cell(cell: Cell, data: Path, backbone: str, work: Path) -> dict[str, Any]:
    """Adapt, transcribe the valid split, and say what came of it."""
    method, options = cell.method
    config = WhisperConfig(
        data=str(without_test(data, cell.language, work)),
        output=str(work / "runs" / cell.name),
        backbone=backbone,
        language=cell.language,
        method=method,
        method_options=options,
        trim_encoder=True,
        batch_size=4,
        learning_rate=cell.rate,
        final_learning_rate=cell.rate / 50,
        weight_decay=cell.weight_decay,
        warmup_ratio=0.1,
        seed=cell.seed,
        spec_augment=cell.spec_augment,
        length_buckets=True,
        precision="float32",
        device="cpu",
        tensorboard=False,
        **BUDGETS[cell.budget],
    )
    trainers: list[StudyTrainer] = []

    class Trainer(StudyTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.cell = cell
            super().__init__(*args, **kwargs)
            trainers.append(self)

    usual, task.WhisperTrainer = task.WhisperTrainer, Trainer  # type: ignore[misc]
    start = time.perf_counter()
    try:
        # A finished run whose cell was not written holds no curve of the text's loss: it is made again.
        ended = (config.output_path / METRICS_FILE).is_file()
        result = run(config, resume=not ended and config.output_path.exists(), overwrite=ended, console=Console())
    finally:
        task.WhisperTrainer = usual  # type: ignore[misc]
    trainer = trainers[0]
    curve: dict[int, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        names = {"loss": "train_loss", "eval_loss": "valid_loss", "eval_text_loss": "valid_text_loss"}
        row = {new: entry[old] for old, new in names.items() if old in entry}
        curve.setdefault(round(entry["epoch"]), {}).update(row)
    return {
        "cell": asdict(cell),
        "method": method,
        "method_options": options,
        "trained": result.parameters["adapter"],
        "updates": trainer.state.global_step,
        "before": getattr(trainer, "before", None),
        "curve": [{"epoch": epoch, **row} for epoch, row in sorted(curve.items())],
        "best_epoch": result.best_epoch,
        "valid": {name: result.scores["valid"][name] for name in ("wer", "cer")},
        "recordings": dict(result.recordings),
        "hours": dict(result.hours),
        "seconds": round(time.perf_counter() - start, 1),
        "training_seconds": round(result.seconds, 1),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": dict(result.versions),
    }


def finished(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The cells that have been computed."""
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row a cell, the lowest loss first, by language and budget."""
    lines = []
    for language, budget in sorted({(item["cell"]["language"], item["cell"]["budget"]) for item in results}):
        rows = [item for item in results if (item["cell"]["language"], item["cell"]["budget"]) == (language, budget)]
        lines += [f"\n{language}, {budget}\n", "| cell | trained | rate | train loss | valid loss | WER | CER |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for item in sorted(rows, key=lambda row: best(row)["valid_loss"]):
            name = Cell(**{k: _tuples(v) for k, v in item["cell"].items()}).name
            point = best(item)
            rates = [100 * _rate(item["valid"][kind]) for kind in ("wer", "cer")]
            lines.append(
                f"| {name.removeprefix(f'{language}_{budget}_')} | {item['trained']:,} | {item['cell']['rate']:g} | "
                f"{point.get('train_loss', float('nan')):.3f} | {point['valid_loss']:.3f} | {rates[0]:.1f} | "
                f"{rates[1]:.1f} |"
            )
    return "\n".join(lines)


def best(item: Mapping[str, Any]) -> Mapping[str, float]:
    """The epoch with the lowest loss on the valid split."""
    return min((row for row in item["curve"] if "valid_loss" in row), key=lambda row: row["valid_loss"])


def _rate(score: Any) -> float:
    return float(score["rate"] if isinstance(score, Mapping) else score)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "list", "table"])
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--data", type=Path, help="manifest with columns path, language, split, text")
    parser.add_argument("--backbone", help="folder of Whisper base")
    parser.add_argument("--work", type=Path, default=Path("runs/adapter_study"), help="where runs are written")
    parser.add_argument("--cells", type=Path, default=HERE / "adapter_study", help="folder of the finished cells")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table(list(finished(arguments.cells))))
        return
    chosen = [
        replace(cell, seed=seed) for seed in arguments.seeds for stage in arguments.stages for cell in cells(stage)
    ]
    if arguments.command == "list":
        print("\n".join(cell.name for cell in chosen))
        return
    arguments.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for cell in chosen:
        target = arguments.cells / f"{cell.name}.json"
        if target.is_file():
            continue
        print(time.strftime("%H:%M:%S"), cell.name, flush=True)
        try:
            outcome = run_cell(cell, arguments.data, arguments.backbone, arguments.work)
        except Exception as error:  # one diverged cell must not end the rest
            print(f"  failed: {type(error).__name__}: {error}", flush=True)
            continue
        write_atomically(target, to_json(outcome))
        print(f"  {best(outcome)} WER {_rate(outcome['valid']['wer']):.3f} {outcome['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
