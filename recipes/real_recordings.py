"""Methods on four sets of real recordings, of one size, each with its best learning rate: ``mambavox compare``.

    python recipes/real_recordings.py --data ../shared/data --output runs/real-recordings --workers 2

Protocols. ``fsdd``: the corpus's own train, valid and test recordings. ``arabic_speech_commands``: tested on the six
speakers of the official valid split; three of the eighteen training speakers choose. ``esc10`` and ``coffee_intents``:
four folds (official; stratified), tested on one, chosen on the one before, trained on two; the mean over ``FOLDS``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mambavox.evaluation.compare.compare import compare
from mambavox.evaluation.compare.grid import Grid, Task, parse_variant
from mambavox.evaluation.compare.listing import fit_variants
from mambavox.evaluation.compare.tables import markdown

METHODS = "mambadapter,conformer,convpass,bottleneck,lora,bitfit,linear,full"
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PARAMETERS = 20_000
FOLDS = {"esc10": ("1", "2"), "coffee_intents": ("1",)}
SETTINGS: dict[str, dict[str, Any]] = {
    "fsdd": {"epochs": 3},
    "arabic_speech_commands": {"epochs": 10, "group_column": "speaker", "valid_fraction": 1 / 6},
    "esc10": {"epochs": 10, "batch_size": 16},
    "coffee_intents": {"epochs": 6, "batch_size": 8},
}


def make_task(name: str, data: Path, folder: Path) -> Task:
    """A task whose manifest has absolute paths and the parts of its protocol."""
    lines = (data / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["path"] = str((data / name / row["path"]).resolve())
        if name == "arabic_speech_commands":
            row["split"] = {"train": "train", "valid": "test"}[row["split"]]
    if name == "coffee_intents":
        from sklearn.model_selection import StratifiedKFold

        folds = StratifiedKFold(4, shuffle=True, random_state=0).split(rows, [row["label"] for row in rows])
        for number, (_, chosen) in enumerate(folds, start=1):
            for index in chosen:
                rows[index]["fold"] = number
                del rows[index]["split"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return Task(name, str(path), FOLDS.get(name), SETTINGS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/real-recordings"))
    parser.add_argument("--backbone", default="nano-ast")
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--methods", default=METHODS, help="with options, such as 'lora r=4,mambadapter init=paper'")
    parser.add_argument("--parameters", type=int, default=PARAMETERS, help="trained ones of a method without a size")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    arguments = parser.parse_args()

    grid = Grid(
        "real recordings",
        tuple(parse_variant(words) for words in arguments.methods.split(",")),
        tuple(make_task(name, arguments.data, arguments.output / "manifests") for name in arguments.tasks),
        backbone=arguments.backbone,
        learning_rates=RATES,
        settings={"device": "cpu", "precision": "bfloat16"},
    )
    grid = fit_variants(grid, [arguments.parameters])
    print(markdown(compare(grid, arguments.output, workers=arguments.workers, console=Console())))


if __name__ == "__main__":
    main()
