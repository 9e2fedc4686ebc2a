"""The commands, as a user types them."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from tiny import FAMILIES
from tiny_corpora import write_urbansound8k
from typer.testing import CliRunner

from mambavox import files as atomic
from mambavox.cli import app
from mambavox.cli.flags import parse_options
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.configs import ADAPT_TASKS, CONFIGS

QUICK = ("--epochs", "1", "--batch-size", "4", "--no-tensorboard", "--device", "cpu")


def _run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Standard output and error of a command that ends with a code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def run(backbone: Callable[[str], str], tones: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run, trained until it tells the tones apart."""
    folder = str(tmp_path_factory.mktemp("run") / "tones")
    flags = ("--epochs", "40", "--learning-rate", "5e-3", "--method", "full", "--batch-size", "4", "--no-tensorboard")
    _run("adapt", "--data", tones, "--backbone", backbone("ast"), "--output", folder, "--device", "cpu", *flags)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_adapt_trains_every_family(backbone: Callable[[str], str], tones: str, tmp_path: Path, family: str) -> None:
    flags = ("--data", tones, "--backbone", backbone(family), "--output", tmp_path / family, "--bottleneck-dim", "4")
    out, _ = _run("adapt", *map(str, flags), "--epochs", "2", "--no-tensorboard", "--device", "cpu")
    assert "test: accuracy" in out
    assert "epoch 2/2" in out
    assert f"mambavox predict {tmp_path / family} FILE" in out
    metrics = json.loads((tmp_path / family / "metrics.json").read_text())
    losses = [row["valid_loss"] for row in metrics["learning_curve"]]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1], "the second epoch must have changed the model"
    assert ClassifyConfig.load(tmp_path / family / "run.yaml").method_options == {"bottleneck_dim": 4}


def test_adapt_with_a_file_and_overrides(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"data: {tones}\nbackbone: {backbone('ast')}\noutput: {tmp_path / 'run'}\nepochs: 1\nlearning_rate: 1e-2\n"
        "tensorboard: false\ndevice: cpu\nd_state: 4\n"
    )
    _run("adapt", "--config", str(file), "--learning-rate", "1e-3", "--no-train-norms", "--spec-augment")
    config = ClassifyConfig.load(tmp_path / "run" / "run.yaml")
    assert (config.learning_rate, config.epochs, config.spec_augment) == (1e-3, 1, True)
    assert config.method_options == {"d_state": 4, "train_norms": False}
    # --resume takes the configuration from the run; it is finished, so nothing is run again.
    out, _ = _run("adapt", "--output", str(tmp_path / "run"), "--resume")
    assert "test: accuracy" in out


def test_default_output_is_named_after_the_data(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _run("adapt", "--data", tones, "--backbone", backbone("ast"), *QUICK)
    assert (tmp_path / "runs" / "tones" / "adapter_model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:UrbanSound8K has 8732 recordings:UserWarning")
def test_adapt_follows_the_protocol_of_a_corpus(
    backbone: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--data", f"urbansound8k:{write_urbansound8k(tmp_path / 'corpus')}", "--backbone", backbone("ast"), *QUICK)
    out, _ = _run("adapt", *flags, "--fold", "3", "--shots", "2")
    assert "fold 3 of 10: train is fold 1, 2, 5, 6, 7, 8, 9, 10; valid is fold 4; test is fold 3" in out
    assert "train: 2 of each class, 4 of 32 recordings, drawn with seed 0" in out
    config = ClassifyConfig.load(tmp_path / "runs" / "urbansound8k-fold3" / "run.yaml")
    assert (config.fold, config.shots) == ("3", 2)
    out, _ = _run("adapt", *flags, "--protocol", "paper")
    assert "protocol paper, fold 1 of 10, the first, for want of --fold: train is" in out
    assert "test (optimistic: the epoch was chosen on this split): accuracy" in out
    out, _ = _run("evaluate", "runs/urbansound8k-paper", "--device", "cpu")
    assert "test (optimistic: the epoch was chosen on this split): 4 recordings" in out
    for split in ("test", "train"):
        out, _ = _run("evaluate", "runs/urbansound8k-paper", "--split", split, "--json", "--device", "cpu")
        assert json.loads(out)["selects_on_test"]
    _, err = _run("adapt", *flags, "--fold", "11", code=1)
    assert "fold is 11" in err
    assert "--fold" in err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ((), 1, ["no data given", "--data"]),
        (("--data", "nowhere"), 1, ["nowhere"]),
        (("--data", "TONES", "--label-column", "word"), 1, ["'word'", "--label-column"]),
        (("--data", "TONES", "--method", "magic"), 2, ["magic", "mambadapter"]),
        (("--data", "TONES", "--backbone", "no/such"), 1, ["no/such", "could not be fetched"]),
        (("--data", "TONES", "--learning-rte", "1"), 2, ["learning_rte", "learning_rate"]),
        (("--data", "TONES", "--method", "linear", "--r", "4", "--x"), 2, ["unknown key"]),
        (("--data", "TONES", "stray"), 2, ["stray"]),
        (("--data", "TONES", "--epochs", "many"), 2, ["--epochs"]),
        (("--data", "TONES", "--epochs", "0"), 1, ["epochs=0", "at least 1"]),
        (("--config", "nowhere.yaml"), 1, ["nowhere.yaml"]),
        (("--data", "TONES", "--resume", "--overwrite"), 1, ["--resume", "--overwrite"]),
    ],
)
def test_mistakes_are_told_in_words(
    tones: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    code: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = _run("adapt", *(tones if flag == "TONES" else flag for flag in flags), code=code)
    for word in words:
        assert word in err.replace("\n", " ")
    assert "Traceback" not in out + err


def test_an_output_in_use(run: str, tones: str, backbone: Callable[[str], str]) -> None:
    _, err = _run("adapt", "--data", tones, "--backbone", backbone("ast"), "--output", run, *QUICK, code=1)
    assert err.startswith("error: ")
    assert "--overwrite" in err


def test_bad_recordings_raise_or_are_skipped(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in Path(tones).iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    (data / "low_0.wav").write_bytes(b"RIFF")
    flags = ("--data", data, "--backbone", backbone("ast"), "--output", tmp_path / "run", *QUICK)
    _, err = _run("adapt", *map(str, flags), code=1)
    assert "low_0.wav" in err
    assert "--on-error skip" in err
    out, _ = _run("adapt", *map(str, flags), "--on-error", "skip")
    assert "left out: 1 recordings; metrics.json says which and why" in out


def test_predict(run: str, tones: str, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    files = (f"{tones}/low_0.wav", str(tmp_path / "broken.wav"), f"{tones}/high_2.wav")
    out, err = _run("predict", run, *files, code=1)
    lines = out.splitlines()
    assert lines[0].startswith(f"{files[0]}  low 0.")
    assert lines[1].startswith(f"{files[2]}  high 0.")
    assert len(lines) == 2
    assert "broken.wav" in err
    out, _ = _run("predict", run, *files, "--json", "--batch-size", "2", code=1)
    rows = json.loads(out)
    assert [row["file"] for row in rows] == list(files)
    assert "broken.wav" in rows[1]["error"]
    assert [item["label"] for item in rows[2]["predictions"]] == ["high", "low"]
    out, _ = _run("predict", run, files[0], "--top", "2")
    assert " low 0." in out
    assert " high 0." in out
    assert len(_run("predict", run, tones)[0].splitlines()) == 12
    _, err = _run("predict", str(tmp_path), files[0], code=1)
    assert "holds no run" in err


def test_predict_hears_a_long_recording_to_its_end(run: str, tones: str, tmp_path: Path) -> None:
    """High tones behind a low one: what is heard first is not what the recording is."""
    pieces = [soundfile.read(f"{tones}/{name}.wav")[0] for name in ("low_0", *["high_0"] * 8)]
    file = tmp_path / "long.wav"
    soundfile.write(file, np.concatenate(pieces), 16_000)
    seconds = sum(map(len, pieces)) / 16_000
    out, _ = _run("predict", run, str(file))
    assert out.startswith(f"{file}  high 0.")
    rows = json.loads(_run("predict", run, str(file), "--windows", "--json", "--batch-size", "3")[0])
    windows = rows[0]["windows"]
    assert rows[0]["seconds"] == pytest.approx(seconds)
    assert f"(mean of {len(windows)} windows of {windows[0]['end']:.2f} s)" in out
    assert (windows[0]["start"], windows[-1]["end"]) == (0, pytest.approx(seconds))
    assert windows[0]["predictions"][0]["label"] == "low"
    lines = list(csv.DictReader(io.StringIO(_run("predict", run, str(file), "--windows", "--csv")[0])))
    assert [line["predicted"] for line in lines] == [item["predictions"][0]["label"] for item in windows]
    mean = np.mean([float(line["p(high)"]) for line in lines])
    assert rows[0]["predictions"][0] == {"label": "high", "score": pytest.approx(mean, abs=1e-5)}
    (line,) = csv.DictReader(io.StringIO(_run("predict", run, str(file), "--csv")[0]))
    assert (line["start"], line["end"], line["predicted"]) == ("0.000", f"{seconds:.3f}", "high")
    assert len(_run("predict", run, str(file), "--windows")[0].splitlines()) == len(windows) + 1
    assert "expected one of them" in _run("predict", run, str(file), "--csv", "--json", code=1)[1]


def test_evaluate_says_that_recordings_are_longer(run: str, tones: str, tmp_path: Path) -> None:
    for label in ("low", "high"):
        (tmp_path / label).mkdir()
        other = "high" if label == "low" else "low"
        pieces = [soundfile.read(f"{tones}/{name}_0.wav")[0] for name in (other, *[label] * 8)]
        soundfile.write(tmp_path / label / "0.wav", np.concatenate(pieces), 16_000)
    out, _ = _run("evaluate", run, "--data", str(tmp_path), "--device", "cpu")
    assert "accuracy 0.0 %" in out
    assert "2 of 2 recordings are longer" in out
    assert "--whole" in out
    out, _ = _run("evaluate", run, "--data", str(tmp_path), "--device", "cpu", "--whole")
    assert "accuracy 100.0 %" in out
    assert "mean over windows" in out


@pytest.mark.usefixtures("plots")
def test_a_run_and_an_evaluation_leave_plots_and_predictions(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = ("--data", tones, "--backbone", backbone("ast"), "--output", str(folder), "--method", "linear", *QUICK)
    _run("adapt", *flags)
    assert "![confusion](confusion.png)" in (folder / "README.md").read_text()
    rows = list(csv.DictReader((folder / "predictions.csv").open(encoding="utf-8")))
    assert list(rows[0])[4:] == ["p(high)", "p(low)"]
    for row in rows:
        best = max(("high", "low"), key=lambda label: float(row[f"p({label})"]))
        assert (best, float(row["p(high)"]) + float(row["p(low)"])) == (row["predicted"], pytest.approx(1, abs=1e-5))
    _, err = _run("evaluate", str(folder), "--split", "test")
    left = folder / "evaluations" / "test"
    assert f"scores.json, predictions.csv, confusion.png: in {left}" in err
    again = list(csv.DictReader((left / "predictions.csv").open(encoding="utf-8")))
    assert again == [row for row in rows if row["split"] == "test"]
    assert json.loads((left / "scores.json").read_text())["splits"]["test"]["recordings"] == len(again)
    (tmp_path / "file").touch()
    assert "choose another folder" in _run("evaluate", str(folder), "--output", str(tmp_path / "file"), code=1)[1]

    monkeypatch.setattr("mambavox.runs.plots.can_draw", lambda: False)
    out, _ = _run("adapt", *flags, "--overwrite")
    assert out.count("no plots are drawn: matplotlib is not installed") == 1
    assert not (folder / "confusion.png").exists()
    assert not left.exists(), "an evaluation of the run that was replaced"
    out, _ = _run("adapt", *flags, "--overwrite", "--no-plots")
    assert "no plots" not in out


def test_evaluate(run: str, tones: str) -> None:
    metrics = json.loads((Path(run) / "metrics.json").read_text())
    out, _ = _run("evaluate", run, "--json", "--device", "cpu")
    figures = json.loads(out)["splits"]["test"]
    assert {key: figures[key] for key in metrics["scores"]["test"]} == metrics["scores"]["test"]
    assert figures["confusion"] == [[2, 0], [0, 2]]
    out, _ = _run("evaluate", run, "--split", "valid", "--worst", "1")
    assert "valid: 4 recordings" in out
    assert "accuracy 100.0 % [51.0, 100.0]" in out
    assert len([line for line in out.splitlines() if line.startswith("  ")]) == 1
    _, err = _run("evaluate", run, "--no-trim-encoder", code=1)
    assert "--trim-encoder is for runs of whisper, and" in err and "is one of classify" in err
    out, _ = _run("evaluate", run, "--data", tones, "--split", "all")
    assert "all: 12 recordings" in out
    _, err = _run("evaluate", run, "--split", "tset", code=1)
    assert "tset" in err and "train, valid" in err


def test_info() -> None:
    out, _ = _run("info", "--json")
    facts = json.loads(out)
    assert facts["selected_backend"] in {row["name"] for row in facts["backends"] if row["available"]}
    assert all(row["reason"] for row in facts["backends"])
    assert {"mambadapter", "bottleneck", "lora", "linear", "full"} <= facts["methods"].keys()
    out, _ = _run("info")
    for word in ("torch", "Whisper", "scan backend", "mambadapter"):
        assert word in out
    rows = json.loads(_run("info", "--method", "mambadapter", "--json")[0])
    options = {row["option"]: row for row in rows}
    assert options["bottleneck_dim"]["default"] == 12
    assert all(row["meaning"] for row in rows), [row["option"] for row in rows if not row["meaning"]]
    assert "it takes no options" in _run("info", "--method", "full")[0]
    _run("info", "--method", "magic", code=2)


def test_help_names_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out, _ = _run("adapt", "--help")
    for spec in (spec for task in ADAPT_TASKS for spec in fields(CONFIGS[task])):
        if spec.name != "method_options":
            assert "--" + spec.name.replace("_", "-") in out


def test_options_of_the_method() -> None:
    words = ["--bottleneck-dim", "12", "--no-train-norms", "--scale-init=0.5", "--learn-scale", "--layers", "[0,2]"]
    assert parse_options(words) == {
        "bottleneck_dim": "12",
        "train_norms": False,
        "scale_init": "0.5",
        "learn_scale": True,
        "layers": [0, 2],
    }
    assert parse_options(["--a", "true", "--b", "none"]) == {"a": True, "b": "none"}
    with pytest.raises(typer.BadParameter, match="stray"):
        parse_options(["stray"])


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["shards", "make"], ".tar"),
        (["shards", "make"], "shards.json"),
        (["units", "fit", "--source", "mfcc", "--num-clusters", "2", "--data"], "kmeans"),
        (["units", "label", "--source", "mfcc", "--num-clusters", "2", "--data"], "labels-"),
    ],
)
def test_a_full_disk_is_told(
    command: list[str], file: str, tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = atomic._create

    def full(path: Path) -> int:
        if file in path.name:
            raise OSError(28, "No space left on device")
        return create(path)

    monkeypatch.setattr(atomic, "_create", full)
    _, err = _run(*command, tones, "--output", tmp_path / "out", code=1)
    assert "the disk is full. Make room" in err.replace("\n", " ")
