"""Make an embedded model of a trained one: its weights in float16, and what belongs to them.

python recipes/ship.py runs/nano-hubert/mamba/it2 mambavox/assets/nano-mamba-hubert
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mambavox.files import replacing

MOST_BYTES = 10_000_000
BESIDE = ("preprocessor_config.json", "processor_config.json", "generation_config.json", "vocab.json")
"""What is copied, and all of the tokenizer; its README is written by hand."""


def ship(run: Path, asset: Path, most_bytes: int = MOST_BYTES) -> None:
    """Write an embedded model.

    Args:
        run: folder of a trained model.
        asset: folder to write.
        most_bytes: of its weights.
    """
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(run / "model.safetensors").items()
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    lost = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if size > most_bytes or lost:
        raise SystemExit(f"{run}: {size} bytes in float16, {len(lost)} weights out of its range {lost[:1]}")
    asset.mkdir(parents=True, exist_ok=True)
    with replacing(asset / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    # The package is there: no code needs to travel with the model. It is computed with in single precision.
    config = {key: value for key, value in config.items() if key != "auto_map"} | {"dtype": "float32"}
    (asset / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in sorted(run.iterdir()):
        if path.name in BESIDE or path.name.startswith(("tokenizer", "special_tokens", "added_tokens", "merges")):
            shutil.copy(path, asset / path.name)


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("asset", type=Path)
    parser.add_argument("--most-bytes", type=int, default=MOST_BYTES)
    arguments = parser.parse_args()
    ship(arguments.run, arguments.asset, arguments.most_bytes)


if __name__ == "__main__":
    main()
