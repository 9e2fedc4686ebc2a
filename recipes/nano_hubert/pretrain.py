"""Pre-train the nano Mamba-HuBERTs and their Transformer twins on real speech, two iterations each.

    python recipes/nano_hubert/pretrain.py --data ../shared/data --output runs/nano-hubert

All hear the same recordings (training splits of ssl_speech, librispeech_subset, arabic_speech_commands and the German
and Dutch of multilingual_asr; held back are the validation splits of two of them), for the same updates, with the same
rate, batches, crops and masks. The second iteration's units are those of the middle layer of the first's model. The
same command continues where it was interrupted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mambavox.runs.result import describe_scores
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.run import run as train

ENCODERS = {"mamba": 6, "causal-transformer": 4, "ext-bimamba": 3, "transformer": 4}
"""Kinds of encoder, all of about 3.8 million parameters, and the middle one of their layers."""
PACKS = {
    "ssl_speech": None,
    "librispeech_subset": None,
    "arabic_speech_commands": None,
    "multilingual_asr": ("de", "nl"),
}
"""Folders of recordings, and the languages that are taken; ``None`` takes all."""
HELD_BACK = ("librispeech_subset", "arabic_speech_commands")
"""Folders whose validation split measures the training."""


def write_manifest(data: Path, path: Path) -> None:
    """List the recordings of all packs, with their splits."""
    lines = []
    for pack, languages in PACKS.items():
        folder = (data / pack).resolve()
        for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            split = row.get("split", "train")
            if languages and row["language"] not in languages:
                continue
            if split == "train" or (split == "valid" and pack in HELD_BACK):
                lines.append(json.dumps({"path": str(folder / row["path"]), "split": split, "source": pack}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the packs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--steps", nargs=2, type=int, default=(5000, 5000), help="updates of both iterations")
    parser.add_argument("--batch-seconds", nargs=2, type=float, default=(4.0, 8.0), help="speech an update of both")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="peak")
    arguments = parser.parse_args()
    manifest = arguments.output / "manifest.jsonl"
    write_manifest(arguments.data, manifest)
    console = Console()
    for encoder in arguments.encoders:
        first, second = (arguments.output / encoder / name for name in ("it1", "it2"))
        for output, targets, steps, seconds in zip(
            (first, second),
            ("mfcc", f"{first}:{ENCODERS[encoder]}"),
            arguments.steps,
            arguments.batch_seconds,
            strict=True,
        ):
            config = PretrainConfig(
                data=str(manifest),
                output=str(output),
                preset=f"{encoder}-nano",
                targets=targets,
                steps=steps,
                # Little speech at a time: of the same hours, small updates learn more than few large ones.
                batch_seconds=seconds,
                device_batch_seconds=seconds,
                crop_seconds=seconds,
                min_seconds=0.5,
                learning_rate=arguments.learning_rate,
                save_every=500,
                log_every=100,
            )
            result = train(config, resume=output.exists(), console=console)
            scores = describe_scores(result.scores["valid"])
            console.print(f"{encoder}, {output.name}: {scores}, {result.seconds / 60:.0f} min")


if __name__ == "__main__":
    main()
