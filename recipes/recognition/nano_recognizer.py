"""Train English recognisers on pre-trained nano Mamba-HuBERTs: causal Mamba against causal Transformer, by CTC.

    python recipes/recognition/nano_recognizer.py --data ../shared/data --pretrained runs/nano-hubert --output runs/ctc

They hear LibriSpeech recordings, spoken digits and synthesised phrases. Tested are LibriSpeech (``valid`` chooses the
epoch, ``test_other``), synthesised phrases of held-out sentences, and a reading of minutes, in pieces and as a whole.
The same command continues where it was interrupted.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import soundfile
from rich.console import Console
from speech import RATE, SEEN, Speech, Texts

from mambavox.asr.metrics import score_transcripts
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.text import normalize_text
from mambavox.data import read_audio
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.recognition.finetune import finetune

ENCODERS = ("mamba", "causal-transformer")
SEEDS = (0, 1, 2)
PHRASES = {"train": 1500, "test_synth": 300}
"""Synthesised ones of a part."""


def synthesise(data: Path, folder: Path) -> list[dict[str, str]]:
    """English phrases of espeak-ng's voices; those of the test are from held-out sentences."""
    rows = []
    for number, (split, count) in enumerate(PHRASES.items()):
        texts = Texts.read(data / "texts", ("en",), held_out=split != "train")
        stream = iter(Speech(texts, {"en": SEEN["en"]}, [], seconds=10.0, seed=1000 + number))
        for index in range(count):
            spoken = next(stream)
            path = folder / split / f"{index:05d}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, spoken.waveform, RATE)
            rows.append({"path": str(path.resolve()), "text": spoken.text, "split": split, "source": "synth"})
    return rows


def write_manifest(data: Path, output: Path) -> Path:
    """List all recordings; made once."""
    manifest = output / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    rows = synthesise(data, output / "phrases")
    for corpus in ("librispeech_subset", "fsdd"):
        for line in (data / corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            taken = {"path": str((data / corpus / row["path"]).resolve()), "text": row["text"], "source": corpus}
            if row["split"] == "train":
                rows.append({**taken, "split": "train"})
            elif corpus == "librispeech_subset":
                rows.append({**taken, "split": row["split"]})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def long_form(run: Path, data: Path) -> dict[str, float]:
    """Word error rates on a reading of minutes: piece by piece, and as a whole."""
    recognizer = SpeechRecognizer.from_pretrained(run)
    said: list[str] = []
    pieces: list[str] = []
    wholes: list[tuple[str, str]] = []
    for line in (data / "longform_en" / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        waveform = read_audio(data / "longform_en" / row["path"], RATE)
        cut = [waveform[round(part["start"] * RATE) : round(part["end"] * RATE)] for part in row["segments"]]
        said += [normalize_text(part["text"], "en") for part in row["segments"]]
        pieces += [transcript.text for transcript in recognizer.transcribe(cut)]
        text = " ".join(part["text"] for part in row["segments"])
        wholes.append((normalize_text(text, "en"), recognizer.transcribe([waveform])[0].text))
    return {
        "longform, pieces": score_transcripts(said, pieces).wer.rate,
        "longform, whole": score_transcripts(*map(list, zip(*wholes, strict=True))).wer.rate,
    }


def main() -> None:
    """Read the arguments, train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of recipes/nano_hubert/pretrain.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    arguments = parser.parse_args()
    manifest = write_manifest(arguments.data, arguments.output)
    console = Console()
    lines = []
    for encoder in arguments.encoders:
        found: dict[str, list[float]] = {}
        for seed in arguments.seeds:
            config = RecognitionConfig(
                data=str(manifest),
                model=str(arguments.pretrained / encoder / "it2"),
                output=str(arguments.output / f"{encoder}-seed{seed}"),
                language="en",
                train_split="train",
                valid_split="valid",
                test_split="test_other,test_synth",
                train_front=True,
                epochs=arguments.epochs,
                batch_size=8,
                learning_rate=arguments.learning_rate,
                mask_prob=0.2,
                seed=seed,
                bf16=True,
            )
            result = finetune(config, resume=config.output_path.exists(), console=console)
            for part, scores in result.figures["scores"].items():
                for rate in ("wer", "cer"):
                    found.setdefault(f"{part} {rate.upper()}", []).append(scores[rate]["rate"])
            for name, value in long_form(config.output_path, arguments.data).items():
                found.setdefault(f"{name} WER", []).append(value)
        if not lines:
            lines = ["| encoder | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
        cells = (
            f"{100 * statistics.mean(values):.1f} ± {100 * statistics.pstdev(values):.1f}" for values in found.values()
        )
        lines.append(f"| {encoder} | " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    (arguments.output / "table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
