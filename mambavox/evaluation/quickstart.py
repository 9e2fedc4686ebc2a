"""Methods on the embedded task with the embedded backbone: spoken commands, synthesised here, in two minutes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
from rich.console import Console

from mambavox.data import Example, read_examples
from mambavox.data.audio import SAMPLING_RATE
from mambavox.data.synth import COMMANDS, write_spoken_commands
from mambavox.errors import RunError
from mambavox.evaluation.classifier import AudioClassifier
from mambavox.evaluation.report import HeardExample, comparison_table, plot_comparison, write_results
from mambavox.plotting import NO_MATPLOTLIB, can_draw
from mambavox.runs.folder import RUN_FILES, RunFolder
from mambavox.runs.plots import count_confusions
from mambavox.runs.predictions import PREDICTIONS_FILE, of_split, read_predictions
from mambavox.runs.result import RunResult
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.run import run

SHOWN_METHOD = "mambadapter"
"""The method whose run is copied to the top of the folder."""

QUICK_METHODS = (SHOWN_METHOD, "bottleneck", "lora", "linear")
"""What is compared where nothing else is asked for: two minutes on two cores."""

# About 13,000 trained parameters for each of the three adapters.
_OPTIONS: Mapping[str, Mapping[str, int]] = {
    "mambadapter": {"bottleneck_dim": 8},
    "bottleneck": {"bottleneck_dim": 4},
    "lora": {"r": 3, "lora_alpha": 6},
}
# The better of 2e-3 and 1e-2 (full: of 3e-4 and 2e-3) on the valid split.
_LEARNING_RATES = {"mambadapter": 1e-2, "bottleneck": 1e-2, "lora": 1e-2, "linear": 1e-2, "full": 3e-4}

RESULTS_FILE = "results.json"
_OWN = (RESULTS_FILE, "report.png", "example.wav", "data", "methods", RunFolder("").evaluations.name)


def quickstart(
    output: str | Path,
    *,
    methods: Sequence[str] = QUICK_METHODS,
    clips_per_word: int = 60,
    epochs: int = 6,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, RunResult]:
    """Adapt the embedded backbone to synthesised spoken commands with several methods, and compare them.

    Writes ``results.json``, ``report.png``, ``example.wav`` (of the test split), the recordings (``data/``), a run
    folder a method (``methods/``) and, at its top, the run of ``SHOWN_METHOD``.

    Args:
        output: the folder.
        methods: what is compared, ``SHOWN_METHOD`` among them.
        clips_per_word: recordings of each of the 12 commands.
        epochs: passes over the training split.
        seed: of the recordings and the training.
        overwrite: replace what an earlier quickstart left there.
        console: where progress and the table go.

    Returns:
        The result of each method.

    Raises:
        RunError: the folder is in use.
        ConfigError: the speech synthesiser is not installed.
    """
    folder = _make_room(Path(output), overwrite)
    console = console or Console(quiet=True)
    console.print(f"synthesising {len(COMMANDS) * clips_per_word} spoken commands ...")
    write_spoken_commands(folder / "data", clips_per_word=clips_per_word, seed=seed)
    results = {}
    for method in methods:
        console.print(f"adapting with {method} ...")
        config = ClassifyConfig(
            data=(folder / "data").as_posix(),
            output=(folder / "methods" / method).as_posix(),
            method=method,
            method_options=_OPTIONS.get(method, {}),
            learning_rate=_LEARNING_RATES.get(method),
            epochs=epochs,
            seed=seed,
            device="cpu",  # so that everyone's figures are the same
        )
        results[method] = run(config, console=console if console.is_terminal else None)
    for file in (folder / "methods" / SHOWN_METHOD).iterdir():
        if file.name in RUN_FILES:
            shutil.copy2(file, folder / file.name)
    _write_example(folder)
    if can_draw():
        _draw(results, folder)
    else:
        console.print(NO_MATPLOTLIB, markup=False)
    write_results(results, folder / RESULTS_FILE, task="spoken commands (synthesised)", seed=seed)
    console.print(comparison_table(results))
    return results


def loading_lines(folder: str | Path) -> str:
    """The three lines of Python that load the quickstart's adapter and classify a file."""
    path = Path(folder).as_posix()
    return (
        "import mambavox\n"
        f'classifier = mambavox.AudioClassifier.from_pretrained("{path}")\n'
        f'print(classifier("{path}/example.wav")[0])'
    )


def _make_room(folder: Path, overwrite: bool) -> Path:
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    foreign = sorted({path.name for path in folder.iterdir()} - {*_OWN, *RUN_FILES})
    if foreign:
        raise RunError(f"{folder}: holds {foreign[0]}, which is not a quickstart's; choose another --output")
    if not overwrite:
        raise RunError(f"{folder}: holds a quickstart already; replace it with --overwrite, or choose another --output")
    shutil.rmtree(folder)
    return folder


def _write_example(folder: Path) -> None:
    soundfile.write(folder / "example.wav", _example(folder).read(), SAMPLING_RATE)


def _example(folder: Path) -> Example:
    """The first recording of the test split."""
    return next(example for example in read_examples(folder / "data") if example.fields["split"] == "test")


def _draw(results: Mapping[str, RunResult], folder: Path) -> None:
    example = _example(folder)
    found = AudioClassifier.from_pretrained(folder, device="cpu")([example])[0]
    probabilities = [(item["label"], item["score"]) for item in found]
    rows = of_split(read_predictions(folder / PREDICTIONS_FILE), "test")
    plot_comparison(
        results,
        folder / "report.png",
        f"{len(COMMANDS)} synthesised spoken commands, backbone nano-ast",
        shown=SHOWN_METHOD,
        confusion=count_confusions(rows, results[SHOWN_METHOD].details["labels"]),
        example=HeardExample(example.read(), str(example.label), probabilities),
    )
