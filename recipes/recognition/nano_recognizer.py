"""Train English recognisers on pre-trained nano Mamba-HuBERTs: causal Mamba against causal Transformer, by CTC.

    python recipes/recognition/nano_recognizer.py --data ../shared/data --pretrained runs/nano-hubert --output runs/ctc

They hear what english.py lists: synthesised phrases, LibriSpeech recordings and wake words. Tested are LibriSpeech
(``valid`` chooses the epoch, ``test_other``), synthesised phrases of held-out sentences, and documents: recordings of
``test_other`` joined, and a reading of minutes, in pieces and as a whole. A bidirectional Mamba shows what hearing a
stream in chunks costs. The same command continues where it was interrupted.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import documents
import english
from documents import CHUNKS, LENGTHS, RATE
from matplotlib.figure import Figure
from rich.console import Console

from mambavox.asr.metrics import TranscriptScores
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.evaluation.report import COLORS, MARKERS, style_axes
from mambavox.files import to_json, write_atomically
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.recognition.finetune import finetune

CAUSAL = ("mamba", "causal-transformer")
BIDIRECTIONAL = "ext-bimamba"
SEEDS = (0, 1, 2)
"""Of the causal ones; the bidirectional one has the first."""

Rates = dict[str, dict[str, float]]
"""Word and character error rates (``wer``, ``cer``) by what was recognised."""


def write_manifest(data: Path, output: Path) -> Path:
    """List all recordings, which are made once."""
    manifest = output / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    rows = english.corpus(data, output / "recordings")
    write_atomically(manifest, "".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def train(encoder: str, seed: int, manifest: Path, arguments: argparse.Namespace, console: Console) -> Rates:
    """Error rates of a run on single recordings; it is done or continued if it must."""
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
    return {
        part: {rate: scores[rate]["rate"] for rate in ("wer", "cer")}
        for part, scores in result.figures["scores"].items()
    }


def test(run: Path, manifest: Path, data: Path, *, chunked: bool) -> Rates:
    """Error rates of a run on documents, and in chunks; computed once."""
    kept = run / "documents.json"
    if kept.is_file():
        found: Rates = json.loads(kept.read_text(encoding="utf-8"))
        return found
    recognizer = SpeechRecognizer.from_pretrained(run, device="cpu")
    said = documents.recordings(manifest, "test_other")
    scores: dict[str, TranscriptScores] = {}
    if chunked:
        for chunk, look_ahead in CHUNKS:
            scores[_chunk(chunk, look_ahead)] = documents.score_chunks(recognizer, said, chunk, look_ahead)
    for length in LENGTHS:
        scores[_joined(length)] = documents.score(recognizer, documents.join(said, length))
    pieces, wholes = documents.readings(data / "longform_en")
    scores["reading, pieces"] = documents.score(recognizer, pieces)
    scores["reading, whole"] = documents.score(recognizer, wholes)
    rates = {name: score.rates for name, score in scores.items()}
    write_atomically(kept, to_json(rates))
    return rates


def _joined(length: int) -> str:
    return f"test_other, {length} joined"


def _chunk(chunk: float, look_ahead: float) -> str:
    return f"test_other, chunks of {chunk:g} + {look_ahead:g} s"


def table(found: dict[str, list[Rates]]) -> str:
    """Markdown: a line for each thing recognised, a column for each encoder and rate, mean and deviation over seeds."""
    columns = [(encoder, rate) for encoder in found for rate in ("wer", "cer")]
    lines = ["| % | " + " | ".join(f"{encoder} {rate.upper()}" for encoder, rate in columns) + " |"]
    lines.append("|---|" + "--:|" * len(columns))
    names = dict.fromkeys(name for runs in found.values() for name in runs[0])
    for name in names:
        cells = [_cell([run[name][rate] for run in found[encoder] if name in run]) for encoder, rate in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rates: list[float]) -> str:
    if not rates:
        return ""
    percent = [100 * rate for rate in rates]
    deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{deviation}"


def plot(found: dict[str, list[Rates]], seconds: Callable[[int], float], path: Path) -> None:
    """Error rates by the length of documents.

    Args:
        found: by encoder, of each seed.
        seconds: mean length of a document of some recordings.
        path: of the picture.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, rate in zip(figure.subplots(1, 2), ("wer", "cer"), strict=True):
        for number, (encoder, runs) in enumerate(found.items()):
            values = [[100 * run[_joined(length)][rate] for run in runs] for length in LENGTHS]
            axes.errorbar(
                [seconds(length) for length in LENGTHS],
                [statistics.mean(value) for value in values],
                yerr=[statistics.stdev(value) if len(value) > 1 else 0.0 for value in values],
                color=COLORS[number],
                marker=MARKERS[number],
                capsize=2,
                label=encoder,
            )
        axes.set(xscale="log", xlabel="seconds of a document", ylabel=f"{rate.upper()} in %")
        style_axes(axes)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Read the arguments, train and test what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of recipes/nano_hubert/pretrain.py")
    parser.add_argument("--output", type=Path, required=True)
    encoders = (*CAUSAL, BIDIRECTIONAL)
    parser.add_argument("--encoders", nargs="+", choices=encoders, default=list(encoders))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    arguments = parser.parse_args()
    manifest = write_manifest(arguments.data, arguments.output)
    console = Console()
    found: dict[str, list[Rates]] = {}
    for encoder in arguments.encoders:
        for seed in arguments.seeds if encoder in CAUSAL else arguments.seeds[:1]:
            rates = train(encoder, seed, manifest, arguments, console)
            run = arguments.output / f"{encoder}-seed{seed}"
            rates |= test(run, manifest, arguments.data, chunked=encoder == BIDIRECTIONAL)
            found.setdefault(encoder, []).append(rates)
    said = documents.recordings(manifest, "test_other")

    def seconds(length: int) -> float:
        return statistics.mean(len(waveform) for waveform, _ in documents.join(said, length)) / RATE

    plot(found, seconds, arguments.output / "documents.png")
    text = table(found)
    write_atomically(arguments.output / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
