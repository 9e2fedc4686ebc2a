"""Adapters of several languages in one Whisper: how long a switch takes, and that it changes nothing; trimmed windows.

    mambavox adapt --task whisper --backbone nano-whisper --language cs --data cs.jsonl --output runs/adapters/cs
    python recipes/recognition/switching.py --runs runs/adapters --output runs/switching

Takes a folder with a run for each language, as ``mambavox transcribe --adapters``. Every language's test split is
transcribed by a Whisper that holds its adapter alone, by one that holds all of them, in batches of one language and in
batches that mix them; the number of transcripts that differ is told. And each run is scored with whole windows and
with ``--trim-encoder``.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from mambavox.asr.metrics import TranscriptScores
from mambavox.asr.whisper import WhisperTranscriber
from mambavox.evaluation.evaluate import EvaluationOptions, evaluate
from mambavox.files import to_json, write_atomically
from mambavox.runs.config import RUN_FILE
from mambavox.runs.fields import read_yaml

SWITCHES = 200


def finished_runs(folder: Path) -> dict[str, Path]:
    """The finished runs in a folder by their names, which are those of their languages."""
    runs = {path.parent.name: path.parent for path in sorted(folder.glob("*/metrics.json"))}
    if not runs:
        raise SystemExit(f"{folder}: holds no finished run; adapt a Whisper to a few languages first, one run for each")
    return runs


def test_recordings(run: Path, most: int) -> list[str]:
    """Recordings of the test split of a run's manifest."""
    manifest = Path(read_yaml(run / RUN_FILE)["data"])
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [str(manifest.parent / row["path"]) for row in rows if row["split"] == "test"][:most]


def switching(runs: dict[str, Path], most: int) -> dict[str, Any]:
    """Time of a switch, and transcripts that are not those of separate loads."""
    recordings = {language: test_recordings(run, most) for language, run in runs.items()}
    # Whole windows, in which a transcript does not depend on the other recordings of its batch.
    whole: dict[str, Any] = {"trim_encoder": False, "device": "cpu"}
    alone = {
        language: [
            said.text for said in WhisperTranscriber.from_pretrained(run, **whole).transcribe(recordings[language])
        ]
        for language, run in runs.items()
    }
    together = WhisperTranscriber.from_pretrained(*runs.values(), **whole)
    languages = list(runs)
    seconds = [together.switch(languages[number % len(languages)]) for number in range(SWITCHES)]
    rows = [(language, path) for language in runs for path in recordings[language]]
    # From language to language: every batch has all of them.
    mixed = sorted(range(len(rows)), key=lambda index: (recordings[rows[index][0]].index(rows[index][1]), index))
    expected = [text for language in runs for text in alone[language]]
    heard_apart = [
        said.text for language in runs for said in together.transcribe(recordings[language], language=language)
    ]
    heard_mixed: list[str] = [""] * len(rows)
    said = together.transcribe([rows[index][1] for index in mixed], language=[rows[index][0] for index in mixed])
    for index, transcript in zip(mixed, said, strict=True):
        heard_mixed[index] = transcript.text
    ordered = sorted(1000 * second for second in seconds)
    return {
        "languages": languages,
        "recordings": len(rows),
        "switch_ms": {"median": statistics.median(ordered), "95 %": ordered[int(0.95 * len(ordered))]},
        "differ_switched": sum(a != b for a, b in zip(expected, heard_apart, strict=True)),
        "differ_mixed": sum(a != b for a, b in zip(expected, heard_mixed, strict=True)),
    }


def trimming(runs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Word error rates on the test splits, with whole windows and with windows that end with the longest clip."""
    return {
        task: {
            name: _word_error_rate(run, EvaluationOptions(trim_encoder=trim, device="cpu"))
            for name, trim in (("whole", False), ("trimmed", True))
        }
        for task, run in runs.items()
    }


def _word_error_rate(run: Path, options: EvaluationOptions) -> float:
    scores = evaluate(run, options).scores["test"]
    assert isinstance(scores, TranscriptScores)
    return scores.wer.rate


def main() -> None:
    """Read the arguments, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder with a run folder for each language")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--most", type=int, default=40, help="recordings of a language")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = finished_runs(arguments.runs)
    found = {"switching": switching(runs, arguments.most), "trimming": trimming(runs)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output / "results.json", to_json(found))
    print(to_json(found))


if __name__ == "__main__":
    main()
