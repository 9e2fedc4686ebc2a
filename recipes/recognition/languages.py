"""Manifests of languages that nano-whisper has not heard, and of real speech, for ``mambavox compare``.

    python recipes/recognition/languages.py --data ../shared/data --output runs/languages

``ca``, ``cs``, ``pt``, ``sw`` and ``tr`` are synthesised (``speech.UNSEEN``; the test split from held-out sentences)
and get a new language token; ``real-de``, ``real-nl`` and ``real-en`` are recordings, whose train split the backbone
has heard. The command that compares five methods on them is printed.
"""

import argparse
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile
from nano_whisper import SECONDS
from speech import RATE, UNSEEN, Speech, Texts

METHODS = (
    "full, lora r=48 lora_alpha=96, bottleneck bottleneck_dim=96, conformer bottleneck_dim=60, "
    "mambadapter bottleneck_dim=64"
)
"""Methods and options; in sizes of about 188,000 parameters each (LoRA: 184,320), the language's row not counted."""
CLIPS = {"train": 240, "valid": 24, "test": 80}
"""Synthesised phrases of a language."""
REAL = {
    "de": ("multilingual_asr", "valid"),
    "nl": ("multilingual_asr", "valid"),
    "en": ("librispeech_subset", "test_other"),
}
"""Folder of the real speech of a language, and its test split."""


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


def command(manifests: dict[str, Path], output: Path) -> str:
    """The comparison of the five methods on these languages, one grid of rates for all."""
    words = ["mambavox", "compare", "--backbone", "nano-whisper", "--methods", METHODS]
    for task, manifest in manifests.items():
        words += ["--task", f"{task}=whisper:{manifest} language={task.removeprefix('real-')}"]
    settings = {
        "learning-rates": "3e-4,1e-3,3e-3",
        "epochs": "4",
        "batch-size": "8",
        "eval-batch-size": "40",
        "warmup-ratio": "0.1",
        "metric-for-best-model": "cer",
        "drop-longer-than": str(SECONDS),
        "drop-eval-longer-than": str(SECONDS),
        "precision": "bfloat16",
        "workers": "2",
        "output": str(output / "comparison"),
    }
    words += [word for key, value in settings.items() for word in (f"--{key}", value)]
    return shlex.join([*words, "--trim-encoder"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the manifests and print the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=[*UNSEEN, *(f"real-{language}" for language in REAL)])
    given = parser.parse_args(arguments)
    folder = given.output / "manifests"
    manifests = {
        task: real(given.data, folder, task.removeprefix("real-"))
        if task.startswith("real-")
        else synthesised(given.data, folder, task)
        for task in given.tasks
    }
    print(command(manifests, given.output))


if __name__ == "__main__":
    main()
